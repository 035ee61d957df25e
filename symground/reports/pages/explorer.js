// The explorer: pick a model, a word, a context, a checkpoint, a layer, a head and a token. Each pick redraws the rest.
(() => {
  const { runs, spaced } = JSON.parse(byId("maps").textContent);
  const pick = Object.fromEntries(["model", "noun", "context", "step", "layer", "head"].map((name) => [name, byId(`pick-${name}`)]));
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bare = (token) => token.replace(/:<(ENV|LAN)>$/, "").replace(/^<(\w+)>$/, "$1:");
  // The words of a study have spaces between them; pieces of plain text have their own.
  const own = (token) => (token === "⋯" ? "" : token);  // goes on with the character of the one before it
  const joined = (tokens) => (spaced ? tokens.map(own).join("").trim() : tokens.map(bare).join(" "));
  const nameOf = (token) => (spaced ? named(token) : bare(token));
  /** The last token of the noun in the scene; -1 if it is not there. */
  function nounOf(example) {
    if (!spaced) return example.tokens.indexOf(`${example.noun}:<ENV>`);
    const text = example.tokens.map(own).join("");
    const within = (c) => c !== undefined && /[\p{L}\p{N}]/u.test(c);
    let start = text.indexOf(example.noun);
    while (start >= 0 && (within(text[start - 1]) || within(text[start + example.noun.length]))) start = text.indexOf(example.noun, start + 1);
    if (start < 0) return -1;
    let end = 0;
    return example.tokens.findIndex((piece) => (end += own(piece).length) >= start + example.noun.length);
  }
  const run = () => runs[pick.model.value];
  const fill = (select, items) => {
    const before = select.value;
    select.replaceChildren(...items.map(([value, text]) => element("option", text, { value })));
    if (items.some(([value]) => String(value) === before)) select.value = before;
  };
  let token = null;  // the chosen one; null is the noun of the scene, -1 is none

  // The numbers of an example at a checkpoint, in nats: those of a head, a layer (their sum) and all layers (theirs).
  function values(r, step, at) {
    const found = r.maps[step][at];
    if (!found.saliency) return null;
    if (found.values) return found.values;
    const length = r.examples[at].tokens.length;
    const rows = new Int8Array(bytes(found.rows).buffer);
    let place = 0;
    const heads = r.heads.map((count, l) => Array.from({ length: count }, () => {
      const row = Float32Array.from({ length }, (_, j) => (rows[place + j] / 127) * found.row_scales[l]);
      place += length;
      return row;
    }));
    const sum = (several) => several.reduce((total, row) => total.map((x, j) => x + row[j]), new Float32Array(length));
    const layers = heads.map(sum);
    found.values = { heads, layers, all: sum(layers) };
    return found.values;
  }
  // One scale for each kind of row, of all examples and checkpoints of a model, as in the view of one text.
  function scalesOf(r) {
    if (r.scales) return r.scales;
    const largest = { all: [], layer: [], head: [], matrix: [] };
    const most = (row) => row.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
    for (const step of r.steps) {
      r.examples.forEach((_, at) => {
        const found = values(r, step, at);
        if (!found) return;
        largest.all.push(most(found.all));
        largest.layer.push(...found.layers.map(most));
        largest.head.push(...found.heads.flat().map(most));
        largest.matrix.push(...r.maps[step][at].scales);
      });
    }
    r.scales = Object.fromEntries(Object.entries(largest).map(([name, of]) => [name, upTo(of, name === "all" ? 1 : 0.99)]));
    return r.scales;
  }

  function models() {
    fill(pick.model, runs.map((r, i) => [i, spaced ? r.model : `${r.model}, seed ${r.seed}`]));
    words();
  }
  function words() {
    const r = run();
    fill(pick.noun, [...new Set(r.examples.map((e) => e.noun))].map((n) => [n, n]));
    fill(pick.layer, [[-1, "all layers"], ...r.layers.map((l) => [l, `layer ${l}`])]);
    const last = r.steps.length - 1;
    const at = Number(pick.step.max) === last ? Number(pick.step.value) : last;
    pick.step.max = last;
    pick.step.value = Math.min(at, last);
    pick.step.closest("label").hidden = !last;
    contexts();
  }
  function contexts() {
    const matching = run().examples.map((e, i) => [e, i]).filter(([e]) => e.noun === pick.noun.value);
    fill(pick.context, matching.map(([e, i]) => [i, `${e.context}: ${joined(e.tokens)} …`]));
    token = null;
    layers();
  }
  function layers() {
    const l = run().layers.indexOf(Number(pick.layer.value));
    fill(pick.head, [[-1, "all heads"], ...Array.from({ length: l < 0 ? 0 : run().heads[l] }, (_, h) => [h, `head ${h}`])]);
    pick.head.disabled = l < 0;
    draw();
  }

  function draw() {
    const r = run();
    const step = r.steps[pick.step.value];
    const at = Number(pick.context.value);
    const example = r.examples[at];
    const found = values(r, step, at);
    byId("step-shown").textContent = `step ${step}`;
    pick.step.setAttribute("aria-valuetext", `step ${step}`);
    byId("map-legend").hidden = byId("heads-note").hidden = !found;
    if (found) drawExample(r, step, at, found);
    else {
      byId("explorer-told").textContent = "There is no map of this example at this checkpoint.";
      for (const place of ["map-tokens", "map-heads", "map-saliency"]) byId(place).replaceChildren();
    }
    curve(r, example, step);
  }
  function drawExample(r, step, at, found) {
    const example = r.examples[at];
    const shown = example.tokens.map(nameOf);
    const l = r.layers.indexOf(Number(pick.layer.value));
    const h = Number(pick.head.value);
    const noun = nounOf(example);
    const k = token ?? noun;
    const row = l < 0 ? found.all : h < 0 ? found.layers[l] : found.heads[l][h];
    const scales = scalesOf(r);
    const scale = l < 0 ? scales.all : h < 0 ? scales.layer : scales.head;
    const where = l < 0 ? "all layers" : `layer ${r.layers[l]}${h < 0 ? "" : `, head ${h}`}`;
    const training = r.steps.length > 1 ? `At step ${step} the` : "The";
    const best = Array.from(row.keys()).filter((i) => row[i] < 0).sort((a, b) => row[a] - row[b]).slice(0, 2);
    const speaks = best.length ? ` ${best.map((i) => `“${shown[i]}” ${shownNumber(row[i])}`).join(" and ")} speak${best.length > 1 ? "" : "s"} most for it (${where}).` : "";
    byId("explorer-told").textContent = `“${joined(example.tokens)} …” ${training} surprisal of “${nameOf(example.target)}” is ${r.maps[step][at].surprisal.toFixed(2)} nats.${speaks}`;

    const focused = document.activeElement && document.activeElement.closest("#map-tokens, #map-heads");
    const before = focused ? [...focused.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    const choose = (i) => { token = i === k ? -1 : i; pickedNow(); };
    const { box, buttons } = tokenBox(spaced ? example.tokens : shown.map((word) => ` ${word} `), "Tokens", choose, choose);
    paintTokens(buttons, shown.map((word, i) => [i, i + 1, word]), row, scale, { key: k });
    byId("map-tokens").replaceChildren(box);
    legendIn(byId("map-legend"), scale, { open: l >= 0, says: `nats at the prediction position, ${where}: blue lowers the surprisal, orange raises it` });

    byId("heads-note").textContent = k < 0
      ? "How much of the surprisal each head moves, either way: the sum of its absolute saliency. Click a head for its row on the tokens, or a token for what each head takes from it."
      : `What each head takes from “${shown[k]}”${k === noun ? " in the scene" : ""}. Click a head for its row on the tokens, or another token for what each head takes from that.`;
    const most = Math.max(...r.heads);
    const totals = found.heads.map((rows) => rows.map((of) => of.reduce((sum, x) => sum + Math.abs(x), 0)));
    const grid = headBox(r.layers, most, (a, b) => {
      const again = a === l && b === h;
      pick.layer.value = again ? -1 : r.layers[a];
      layers();
      pick.head.value = again ? -1 : b;
      pickedNow();
    });
    paintHeads(grid.buttons, r.layers, most, k < 0 ? Math.max(...totals.flat()) || 1 : scales.head, true, (a, b) => {
      const of = found.heads[a][b];
      const value = !of ? NaN : k < 0 ? totals[a][b] : of[k];
      return { value: k < 0 ? -value : value, absent: !of, pressed: a === l && b === h, says: `${shownNumber(value, k >= 0)} nats, ${k < 0 ? "sum of absolute saliency" : `from “${shown[k]}”`}` };
    });
    byId("map-heads").replaceChildren(grid.box);
    if (before >= 0) byId(focused.id).querySelectorAll("button")[before]?.focus();
    matrix(r, step, at, l, shown, scales.matrix);
  }
  function matrix(r, step, at, l, shown, scale) {
    const place = byId("map-saliency");
    place.hidden = l < 0;
    if (l < 0) return place.replaceChildren();
    const found = r.maps[step][at];
    const saliency = bytes(found.saliency);
    const n = shown.length;
    const made = element("table");
    made.append(element("caption", `Layer ${r.layers[l]}: saliency from each token (column) into each position (row), in nats: the absolute value of the sum over its heads.`));
    const head = element("thead");
    const body = element("tbody");
    head.append(element("tr"));
    head.rows[0].append(element("td"), ...shown.map((word) => element("th", word, { scope: "col" })));
    shown.forEach((word, i) => {
      const row = element("tr");
      row.append(element("th", word, { scope: "row" }), ...shown.map((_, j) => {
        if (j > i) return element("td", "", { class: "void" });
        const value = (saliency[(l * n * (n + 1)) / 2 + (i * (i + 1)) / 2 + j] / 255) * found.scales[l];
        const cell = element("td", value ? shownNumber(value, false).replace(/^0/, "") : "0");
        colours.paint(cell, value, scale, false);
        return cell;
      }));
      body.append(row);
    });
    made.append(head, body);
    place.replaceChildren(made);
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
    const [last, y1] = [c.step.at(-1) || 1, Math.max(...values) || 1];
    const to = (s) => (r.linear_until === null ? s / last : Math.min(s / r.linear_until, 1) + Math.log10(Math.max(1, s / r.linear_until)));
    const x = (s) => left + ((width - left - 12) * to(s)) / to(last);
    const y = (v) => height - bottom - ((height - bottom - top) * Math.max(0, v)) / y1;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}` });
    for (let v = 0; v <= y1; v += y1 > 8 ? 4 : y1 > 3 ? 2 : 1) {
      svg.append(make("line", { x1: left, x2: width - 12, y1: y(v), y2: y(v), class: "rule" }), make("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, String(v)));
    }
    const ticks = r.linear_until === null ? [0, last / 2, last] : [0, r.linear_until, last];
    ticks.forEach((s, i) => svg.append(make("text", { x: x(s), y: height - 8, "text-anchor": ["start", "middle", "end"][i] }, String(Math.round(s)))));
    const series = [];
    for (const name of ["mismatched", "matched"]) {
      const ends = (end) => c.step.map((s, i) => `${x(s)},${y(c[`${name}_${end}`][i] ?? c[name][i])}`);
      svg.append(make("polygon", { points: [...ends("low"), ...ends("high").reverse()].join(" "), class: `band ${name}` }));
      svg.append(make("polyline", { points: c.step.map((s, i) => `${x(s)},${y(c[name][i])}`).join(" "), class: `line ${name}` }));
      svg.append(make("text", { x: width - 14, y: y(c[name].at(-1)) - 6, "text-anchor": "end", class: name }, name));
      const interval = (i) => (c[`${name}_low`][i] === null ? "" : ` [${c[`${name}_low`][i]}, ${c[`${name}_high`][i]}]`);
      series.push({ of: name, x: "step", y: "surprisal (nats)", points: c.step.map((s, i) => [x(s), y(c[name][i]), String(s), `${c[name][i]}${interval(i)}`, ""]) });
    }
    svg.append(make("line", { x1: x(step), x2: x(step), y1: top, y2: height - bottom, class: "now" }));
    svg.dataset.series = JSON.stringify(series);
    const scale = r.linear_until === null ? "" : ` (logarithmic from ${r.linear_until} on)`;
    const holder = element("div", undefined, { "aria-label": `Surprisal of “${nameOf(example.target)}” over training` });
    holder.append(svg);
    place.append(element("p", `Surprisal of “${nameOf(example.target)}” (vertical, nats) at each training step (horizontal${scale}), mean over contexts and seeds. The bands are 95 % intervals over contexts. The dashed line is the step that is shown.`, { class: "note" }), holder);
    figureValues.attach(svg);
  }

  // The state in the address, from the first choice on.
  function pickedNow() {
    const state = { model: run().model, word: pick.noun.value, context: run().examples[pick.context.value].context, step: run().steps[pick.step.value] };
    if (Number(pick.layer.value) >= 0) state.layer = pick.layer.value;
    if (Number(pick.head.value) >= 0) state.head = pick.head.value;
    if (token !== null) state.token = token;
    setAddress(`#explorer&${new URLSearchParams(state)}`);
    draw();
  }
  function readAddress() {
    const [place, ...rest] = location.hash.split("&");
    if (place !== "#explorer" || !rest.length) return;
    const given = new URLSearchParams(rest.join("&"));
    const set = (select, value, after) => {
      if (![...select.options].some((o) => o.value === String(value))) return;
      select.value = value;
      after();
    };
    set(pick.model, runs.findIndex((r) => r.model === given.get("model")), words);
    set(pick.noun, given.get("word"), contexts);
    const { examples, steps } = run();
    set(pick.context, examples.findIndex((e) => e.noun === pick.noun.value && String(e.context) === given.get("context")), draw);
    const at = steps.indexOf(Number(given.get("step")));
    if (given.has("step") && at >= 0) pick.step.value = at;
    set(pick.layer, given.get("layer") ?? -1, layers);
    set(pick.head, given.get("head") ?? -1, draw);
    token = given.has("token") ? whole(given.get("token"), -1, examples[pick.context.value].tokens.length - 1) : null;
    draw();
    byId("explorer").scrollIntoView();
  }

  for (const [name, after] of [["model", words], ["noun", contexts], ["context", () => { token = null; draw(); }], ["layer", layers], ["head", draw]]) {
    pick[name].addEventListener("change", () => { after(); pickedNow(); });
  }
  pick.step.addEventListener("input", pickedNow);
  pick.model.form.addEventListener("submit", (e) => e.preventDefault());
  addEventListener("hashchange", readAddress);
  for (const hidden of document.querySelectorAll("#explorer, #to-explorer")) hidden.hidden = false;
  colours.whenever(() => draw());
  models();
  readAddress();
})();
