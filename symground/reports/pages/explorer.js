"use strict";
// The explorer: pick a model, a word, a context, a checkpoint and a layer. Each pick redraws the tables and the chart.
(() => {
  const source = document.getElementById("maps");
  if (!source) return;
  const { runs } = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const pick = { model: byId("pick-model"), noun: byId("pick-noun"), context: byId("pick-context"), step: byId("pick-step"), layer: byId("pick-layer") };

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;  // never as HTML: the words are a corpus's
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const run = () => runs[pick.model.value];
  const fill = (select, items) => {
    const before = select.value;
    select.replaceChildren(...items.map(([value, text]) => element("option", text, { value })));
    if (items.some(([value]) => String(value) === before)) select.value = before;
  };
  const matching = () => run().examples.map((e, i) => [e, i]).filter(([e]) => e.noun === pick.noun.value);
  const bare = (token) => token.replace(/:<(ENV|LAN)>$/, "").replace(/^<(\w+)>$/, "$1:");

  // The browser mixes the colours, so that they fit light and dark mode.
  const shade = (share, mark) => `color-mix(in srgb, var(--${mark}) ${Math.round(100 * Math.min(1, Math.abs(share)))}%, transparent)`;
  const cell = (value, share, mark) => {
    const made = element("td", value);
    made.style.background = shade(share, mark);
    if (Math.abs(share) > 0.55) made.className = "strong";
    return made;
  };
  const small = (x) => (x === 0 ? "0" : Math.abs(x) < 0.001 ? "·" : x.toFixed(3).replace(/^(-?)0\./, "$1."));
  const table = (place, caption, head, rows) => {
    const made = element("table");
    made.append(element("caption", caption));
    const first = element("tr");
    head.forEach(([text, title]) => first.append(element("th", text, { scope: "col", ...(title ? { title } : {}) })));
    const top = element("thead");
    top.append(first);
    const body = element("tbody");
    rows.forEach(([name, cells]) => {
      const row = element("tr");
      row.append(element("th", name, { scope: "row" }), ...cells);
      body.append(row);
    });
    made.append(top, body);
    byId(place).replaceChildren(made);
  };

  function models() {
    fill(pick.model, runs.map((r, i) => [i, `${r.model}, seed ${r.seed}`]));
    words();
  }
  function words() {
    const r = run();
    fill(pick.noun, [...new Set(r.examples.map((e) => e.noun))].map((n) => [n, n]));
    fill(pick.layer, r.layers.map((l) => [l, `layer ${l}`]));
    const last = r.steps.length - 1;
    const whole = Number(pick.step.max) === last ? Number(pick.step.value) : last;
    pick.step.max = last;
    pick.step.value = Math.min(whole, last);
    contexts();
  }
  function contexts() {
    fill(pick.context, matching().map(([e, i]) => [i, `${e.context}: ${e.tokens.map(bare).join(" ")} …`]));
    draw();
  }

  function draw() {
    const r = run();
    const step = r.steps[pick.step.value];
    const example = r.examples[pick.context.value];
    const found = r.maps[step][pick.context.value];
    const layer = r.layers.indexOf(Number(pick.layer.value));
    byId("step-shown").textContent = `step ${step}`;
    pick.step.setAttribute("aria-valuetext", `step ${step}`);
    const words = example.tokens.map(bare);
    const n = words.length;
    if (!found.saliency) {
      byId("explorer-told").textContent = "There is no map of this example at this checkpoint.";
      for (const place of ["map-saliency", "map-heads", "map-grid"]) byId(place).replaceChildren();
      return curve(r, example, step);
    }
    const at = example.tokens.findIndex((t) => t === `${example.noun}:<ENV>`);
    byId("explorer-told").textContent =
      `“${words.join(" ")} …” At step ${step} the surprisal of “${example.target}” is ${found.surprisal.toFixed(2)} nats.`;

    const saliency = bytes(found.saliency);
    const triangle = (n * (n + 1)) / 2;
    const scale = found.scales[layer];
    const head = [["", ""], ...words.map((w, i) => [w, example.tokens[i]])];
    table("map-saliency", `Layer ${r.layers[layer]}: saliency from each token (column) into each position (row), in nats. The largest is ${scale}.`, head,
      words.map((w, i) => [w, words.map((_, j) => {
        if (j > i) return element("td", "", { class: "void" });
        const share = saliency[layer * triangle + (i * (i + 1)) / 2 + j] / 255;
        return cell(small(share * scale), share, "cold");
      })]));

    const rows = new Int8Array(bytes(found.rows).buffer);
    const offsets = [0];
    r.heads.forEach((h) => offsets.push(offsets[offsets.length - 1] + h * n));
    const signed = (l, h, j) => rows[offsets[l] + h * n + j] / 127;
    table("map-heads", `Layer ${r.layers[layer]}: signed saliency from each token (column) into the prediction position, by head (row), in nats. The largest absolute value is ${found.row_scales[layer]}.`, head,
      Array.from({ length: r.heads[layer] }, (_, h) => [`head ${h}`, words.map((_, j) => {
        const share = signed(layer, h, j);
        return cell(small(share * found.row_scales[layer]), share, share < 0 ? "cold" : "warm");
      })]));

    if (at >= 0) {
      const most = Math.max(...r.heads);
      const largest = Math.max(...found.row_scales) || 1;
      table("map-grid", `All layers (rows) and heads (columns): signed saliency from “${words[at]}” in the scene into the prediction position, in nats.`,
        [["", ""], ...Array.from({ length: most }, (_, h) => [`head ${h}`, ""])],
        r.layers.map((name, l) => [`layer ${name}`, Array.from({ length: r.heads[l] }, (_, h) => {
          const value = signed(l, h, at) * found.row_scales[l];
          return cell(small(value), value / largest, value < 0 ? "cold" : "warm");
        })]));
    } else byId("map-grid").replaceChildren();
    curve(r, example, step);
  }

  function curve(r, example, step) {
    const place = byId("map-curve");
    const c = r.curves[example.noun];
    place.replaceChildren();
    if (!c || c.step.length < 2) return;
    const svgNS = "http://www.w3.org/2000/svg";
    const make = (name, attributes, text) => {
      const made = document.createElementNS(svgNS, name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const [width, height, left, bottom, top] = [460, 220, 38, 28, 12];
    const values = ["matched", "mismatched"].flatMap((k) => c[`${k}_high`].map((v, i) => v ?? c[k][i]));
    const [x1, y1] = [c.step[c.step.length - 1] || 1, Math.max(...values) || 1];
    const x = (s) => left + ((width - left - 12) * s) / x1;
    const y = (v) => height - bottom - ((height - bottom - top) * Math.max(0, v)) / y1;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg.append(make("title", {}, `Surprisal of “${example.target}” over training, mean over contexts and seeds. At the last checkpoint it is ${c.matched.at(-1)} nats matched and ${c.mismatched.at(-1)} nats mismatched.`));
    for (let v = 0; v <= y1; v += y1 > 8 ? 4 : y1 > 3 ? 2 : 1) {
      svg.append(make("line", { x1: left, x2: width - 12, y1: y(v), y2: y(v), class: "rule" }), make("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, String(v)));
    }
    for (const share of [0, 0.5, 1]) svg.append(make("text", { x: x(share * x1), y: height - 8, "text-anchor": share === 1 ? "end" : share ? "middle" : "start" }, String(Math.round(share * x1))));
    for (const [name, mark] of [["mismatched", "warm"], ["matched", "cold"]]) {
      const ends = (end) => c.step.map((s, i) => `${x(s)},${y(c[`${name}_${end}`][i] ?? c[name][i])}`);
      svg.append(make("polygon", { points: [...ends("low"), ...ends("high").reverse()].join(" "), class: `band ${mark}` }));
      svg.append(make("polyline", { points: c.step.map((s, i) => `${x(s)},${y(c[name][i])}`).join(" "), class: `line ${mark}` }));
      svg.append(make("text", { x: width - 14, y: y(c[name].at(-1)) - 6, "text-anchor": "end", class: mark }, name));
    }
    svg.append(make("line", { x1: x(step), x2: x(step), y1: top, y2: height - bottom, class: "now" }));
    place.append(element("p", `Surprisal of “${example.target}” (vertical, nats) at each training step (horizontal), mean over contexts and seeds. The bands are 95 % intervals over contexts. The dashed line is the step that is shown above.`, { class: "note" }), svg);
  }

  pick.model.addEventListener("change", words);
  pick.noun.addEventListener("change", contexts);
  pick.context.addEventListener("change", draw);
  pick.layer.addEventListener("change", draw);
  pick.step.addEventListener("input", draw);
  byId("explorer").hidden = false;
  models();
})();
