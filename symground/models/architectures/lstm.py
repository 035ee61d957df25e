"""A unidirectional LSTM language model in Hugging Face form: the study's architecture without a mixing matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils.generic import ModelOutput


class LSTMState(NamedTuple):
    """The LSTM's state after a prefix, for B rows."""

    hidden: Tensor
    """[layers,B,D]"""
    cell: Tensor
    """[layers,B,D]"""

    def select(self, rows: Tensor) -> LSTMState:
        """The state of ``rows`` [N], which may repeat."""
        rows = rows.to(self.hidden.device)
        return LSTMState(self.hidden[:, rows], self.cell[:, rows])


@dataclass
class LSTMOutput(ModelOutput):
    """Final hidden states [B,T,D], and the state after them if ``use_cache`` was set."""

    last_hidden_state: Tensor | None = None
    cache: LSTMState | None = None


class LSTMConfig(PretrainedConfig):
    """Sizes of the LSTM; the input and output embeddings are tied."""

    model_type = "symground-lstm"

    def __init__(
        self,
        vocab_size: int = 1000,
        hidden_size: int = 160,
        num_hidden_layers: int = 4,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.initializer_range = initializer_range
        kwargs.setdefault("tie_word_embeddings", True)
        kwargs.setdefault("use_cache", False)
        super().__init__(**kwargs)


class LSTMPreTrainedModel(PreTrainedModel):
    config_class = LSTMConfig
    base_model_prefix = "model"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            bound = self.config.hidden_size**-0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)


class LSTMModel(LSTMPreTrainedModel):
    """Embedding → stacked LSTM → LayerNorm."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: LSTMState | None = None,
        use_cache: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> LSTMOutput:
        """input_ids [B,T] → last_hidden_state [B,T,D], from the state ``cache`` or from zero.

        Left and right padding do not change the state.
        """
        embedded = self.embedding(input_ids)  # [B,T,D]
        if attention_mask is None or bool(attention_mask.all()):
            out, state = self._recurred(embedded, cache)
            return LSTMOutput(self.norm(out), LSTMState(*state) if use_cache else None)
        if use_cache or cache is not None:
            raise ValueError("cache: the LSTM goes on from its state in rows without padding only")
        # Valid tokens are rolled to the front, so that the state starts at the first one. The output is rolled back.
        length = input_ids.shape[1]
        first = attention_mask.bool().int().argmax(-1)  # [B]
        index = (torch.arange(length, device=input_ids.device) + first[:, None]) % length
        rolled, _ = self._recurred(embedded.take_along_dim(index[..., None], 1))
        back = (torch.arange(length, device=input_ids.device) - first[:, None]) % length
        return LSTMOutput(self.norm(rolled.take_along_dim(back[..., None], 1)))

    def _recurred(self, embedded: Tensor, state: LSTMState | None = None) -> Any:
        """The LSTM's outputs [B,T,D] and state, in the dtype of its weights: on a CPU, dtypes cannot be mixed."""
        with torch.autocast(embedded.device.type, enabled=False):
            return self.lstm(embedded.to(self.norm.weight.dtype), state)


class LSTMForCausalLM(LSTMPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.model = LSTMModel(config)
        self.lm_head: nn.Linear = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """input_ids [B,T] → logits [B,T,V]; with labels [B,T], their mean next-token loss in nats (-100 ignored)."""
        logits = self.lm_head(self.model(input_ids, attention_mask).last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}  # no cache: the state is recomputed


AutoConfig.register(LSTMConfig.model_type, LSTMConfig)
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM)
