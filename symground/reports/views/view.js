"use strict";
// A view of one text. A target, a layer, a head and a token may be chosen; each choice redraws what shows it.
(async () => {
  const data = JSON.parse(document.getElementById("view-data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;  // never as HTML: the words are anyone's
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const unpacked = async (text, Kind) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Kind(await new Response(stream).arrayBuffer());
  };

  const LEVELS = 32767;  // of a row's largest number
  const panels = [];
  for (const given of data.panels) {
    panels.push({
      ...given,
      rows: await unpacked(given.rows, Int16Array), scales: await unpacked(given.scales, Float32Array),
      places: await unpacked(given.places, Int32Array), totals: await unpacked(given.totals, Float32Array),
      ofLayers: await unpacked(given.of_layers.rows, Int16Array), layerScales: await unpacked(given.of_layers.scales, Float32Array),
      ofAll: await unpacked(given.of_all.rows, Int16Array), allScales: await unpacked(given.of_all.scales, Float32Array),
    });
  }
  // Placeholders of an image that stand beside each other are shown as one. Where its picture is shown too, a single
  // placeholder may be chosen there, and else all of them.
  for (const p of panels) {
    const inside = new Map(p.runs.flatMap((run) => Array.from({ length: run[1] - run[0] }, (_, i) => [run[0] + i, run])));
    p.shown = Array.from(p.tokens.keys()).filter((i) => !inside.has(i) || inside.get(i)[0] === i).map((i) => inside.get(i) ?? [i, i + 1, p.tokens[i]]);
    p.parts = data.picture ? new Map() : inside;
  }
  const first = panels[0];
  const signed = first.signed;
  const unit = signed ? " nats" : "";
  const scales = data.scales;  // one for each kind of row, of all targets and both texts

  // What is chosen. l and h are indices, -1 for all; k is a token, -1 for none.
  const chosen = { t: 0, l: -1, h: -1, k: -1 };
  const whole = (text, low, high) => Math.min(high, Math.max(low, Number.isFinite(Number(text)) ? Math.round(Number(text)) : low));
  const targets = Math.min(...panels.map((p) => p.targets.length));
  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    chosen.t = whole(given.get("target") ?? 0, 0, targets - 1);
    chosen.l = given.has("layer") ? first.layers.indexOf(Number(given.get("layer"))) : -1;
    chosen.h = chosen.l >= 0 && given.has("head") ? whole(given.get("head"), 0, first.heads - 1) : -1;
    chosen.k = given.has("token") ? whole(given.get("token"), 0, first.tokens.length - 1) : -1;
  }
  function writeAddress() {
    const parts = [`target=${chosen.t}`];
    if (chosen.l >= 0) parts.push(`layer=${first.layers[chosen.l]}`);
    if (chosen.h >= 0) parts.push(`head=${chosen.h}`);
    if (chosen.k >= 0) parts.push(`token=${chosen.k}`);
    try { history.replaceState(null, "", `#${parts.join("&")}`); } catch { /* a page within another has no address */ }
  }

  // The numbers of a row: [T] values, or null where the row is not in the page.
  const read = (levels, scale, at, length) => Float32Array.from({ length }, (_, i) => (levels[at * length + i] * scale[at]) / LEVELS);
  const headAt = (p, t, l, h) => (t * p.layers.length + l) * p.heads + h;
  function rowOf(p, t, l, h) {
    const length = p.tokens.length;
    if (l < 0) return read(p.ofAll, p.allScales, t, length);
    if (h < 0) return read(p.ofLayers, p.layerScales, t * p.layers.length + l, length);
    const place = p.places[headAt(p, t, l, h)];
    return place < 0 ? null : read(p.rows, p.scales, place, length);
  }
  function valueOf(p, t, l, h, k) {
    const place = p.places[headAt(p, t, l, h)];
    const [start, stop] = p.parts.get(k) ?? [k, k + 1];
    let sum = 0;
    for (let i = start; i < stop; i++) sum += p.rows[place * p.tokens.length + i];
    return place < 0 ? NaN : (sum * p.scales[place]) / LEVELS;
  }
  const scaleOf = () => (chosen.l < 0 ? scales.all : chosen.h < 0 ? scales.layer : scales.head);

  // Colours: blue below 0, orange above; the square root of the share, so that small values are seen too.
  let ends;
  const rgb = (text) => text.match(/\d+(\.\d+)?/g).slice(0, 3).map(Number);
  function readColours() {
    const probe = element("span");
    document.body.append(probe);
    const of = (name) => { probe.style.color = `var(${name})`; return rgb(getComputedStyle(probe).color); };
    ends = { none: of("--card"), low: of("--view-low"), high: of("--view-high") };
    probe.remove();
  }
  function colour(value, scale) {
    if (!Number.isFinite(value)) return ends.none;
    const share = Math.sqrt(Math.min(1, Math.abs(value) / scale));
    const end = value < 0 || !signed ? ends.low : ends.high;
    return ends.none.map((c, i) => Math.round(c + (end[i] - c) * share));
  }
  const css = (c) => `rgb(${c.join(",")})`;
  const light = (c) => {
    const [r, g, b] = c.map((x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ink = (c) => (light(c) > 0.179 ? "#000" : "#fff");  // of the two, the one with more contrast
  const shown = (x) => {
    if (!Number.isFinite(x)) return "not in the page";
    const digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 1 ? 2 : Math.abs(x) >= 0.001 || x === 0 ? 3 : 5;
    return `${signed && x > 0 ? "+" : ""}${x.toFixed(digits)}`;
  };
  const visible = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "→") || "∅";
  const named = (token) => token.trim() || visible(token).trim() || "a space";

  const called = (p, k) => named((p.parts.get(k) ?? [k, k + 1, p.tokens[k]])[2]);

  // Parts that are made once.
  const places = {};
  function move(event, buttons, step) {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + step, ArrowUp: at - step, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined || !buttons[to]) return;
    event.preventDefault();
    buttons[at].tabIndex = -1;
    buttons[to].tabIndex = 0;
    buttons[to].focus();
  }
  const titled = (p, made) => {
    const box = element("div");
    if (panels.length > 1) box.append(element("h3", p.name));
    box.append(made);
    return box;
  };
  function makeTargets() {
    const buttons = first.targets.slice(0, targets).map(([, said, surprisal], t) => {
      const both = [...new Set(panels.map((p) => named(p.targets[t][1])))].join(" | ");
      const made = element("button", both, { type: "button" });
      if (surprisal !== null) made.append(element("small", ` ${panels.map((p) => p.targets[t][2].toFixed(2)).join(" | ")}`));
      made.addEventListener("click", () => choose({ t }));
      made.tabIndex = t ? -1 : 0;
      return made;
    });
    byId("targets").append(...buttons);
    byId("targets").addEventListener("keydown", (e) => move(e, buttons, 1));
    places.targets = buttons;
  }
  function take(start, stop) {
    if (data.picture && stop - start > 1) byId("picture").scrollIntoView({ block: "nearest" });
    else choose({ k: chosen.k === start ? -1 : start });
  }
  function makeText() {
    places.tokens = panels.map((p) => {
      const box = element("div", undefined, { class: "text", role: "group", "aria-label": `Tokens ${p.name}`.trim() });
      const of = new Map(p.targets.slice(0, targets).map(([at], t) => [at, t]).reverse());
      const buttons = p.shown.map(([i, stop, text]) => {
        const made = element("button", visible(text), { type: "button" });
        const t = Array.from({ length: stop - i }, (_, j) => of.get(i + j)).find((x) => x !== undefined);
        if (t !== undefined) made.classList.add("target");
        made.tabIndex = i ? -1 : 0;
        made.addEventListener("click", (e) => (t !== undefined && !e.shiftKey ? choose({ t }) : take(i, stop)));
        return made;
      });
      buttons.forEach((b, n) => box.append(b, ...(p.shown[n][2].includes("\n") ? [element("br")] : [])));
      box.addEventListener("keydown", (e) => {
        const n = buttons.indexOf(document.activeElement);
        if (e.key.toLowerCase() === "k") n < 0 ? choose({ k: -1 }) : take(...p.shown[n]);
        else move(e, buttons, 1);
      });
      byId("text").append(titled(p, box));
      return buttons;
    });
    const underlined = first.targets.some(([at]) => at >= 0);
    byId("text-note").textContent = signed
      ? `Blue tokens lower the surprisal of the target, orange ones raise it. ${underlined ? "An underlined token is a target: click it to see what speaks for it. Click any other token" : "Click a token"} (or press k on one) to see which heads read it. The arrow keys move.`
      : "The stronger a token's colour, the more the target attends to it. " + (targets < first.tokens.length ? "An underlined token is one whose row is in the page: click it to see what it attends to. Click any other token" : "Click a token to see what it attends to; with the shift key") + " (or press k on one) to see which heads attend to it. The arrow keys move.";
  }
  function makeHeads() {
    places.heads = panels.map((p) => {
      const table = element("table");
      table.append(element("caption", "Layers (rows) and heads (columns)"));
      const top = element("tr");
      top.append(element("td"), ...Array.from({ length: p.heads }, (_, h) => element("th", String(h), { scope: "col" })));
      const head = element("thead");
      head.append(top);
      const body = element("tbody");
      const buttons = [];
      p.layers.forEach((layer, l) => {
        const row = element("tr");
        row.append(element("th", String(layer), { scope: "row" }));
        for (let h = 0; h < p.heads; h++) {
          const cell = element("td");
          const made = element("button", undefined, { type: "button" });
          made.tabIndex = buttons.length ? -1 : 0;
          made.addEventListener("click", () => choose(chosen.l === l && chosen.h === h ? { l: -1, h: -1 } : { l, h }));
          buttons.push(made);
          cell.append(made);
          row.append(cell);
        }
        body.append(row);
      });
      table.append(head, body);
      const box = element("div", undefined, { class: "heads" });
      box.append(table);
      box.addEventListener("keydown", (e) => move(e, buttons, p.heads));
      byId("heads").append(titled(p, box));
      return buttons;
    });
  }
  function makeMatrix() {
    byId("matrix-section").hidden = targets < 2;
    if (targets < 2) return;
    byId("matrix-note").textContent = "Each row is a target, each column a token, of the chosen layer and head. Click a cell to choose both.";
    places.matrices = panels.map((p) => {
      const canvas = element("canvas", undefined, { role: "img", "aria-label": "A row for each target over all tokens; the same numbers as those of the text" });
      const width = Math.max(1, Math.min(12, Math.floor(900 / p.tokens.length)));
      const height = Math.max(1, Math.min(14, Math.floor(480 / targets)));
      [canvas.width, canvas.height] = [p.tokens.length, targets];
      canvas.style.width = `${width * p.tokens.length}px`;
      canvas.style.height = `${height * targets}px`;
      const at = (e) => {
        const box = canvas.getBoundingClientRect();
        return [Math.floor(((e.clientY - box.top) / box.height) * targets), Math.floor(((e.clientX - box.left) / box.width) * p.tokens.length)];
      };
      canvas.addEventListener("mousemove", (e) => {
        const [t, k] = at(e);
        const row = p.targets[t] && rowOf(p, t, chosen.l, chosen.h);
        canvas.title = row ? `“${named(p.targets[t][1])}” from “${named(p.tokens[k])}”: ${shown(row[k])}${unit}` : "";
      });
      canvas.addEventListener("click", (e) => { const [t, k] = at(e); choose({ t, k }); });
      // A label for each row, or for as many as have room.
      const every = Math.ceil(11 / height);
      const labels = element("div", undefined, { class: "labels" });
      labels.append(...p.targets.slice(0, targets).map(([, said], t) => element("div", t % every ? "" : named(said))));
      for (const label of labels.children) label.style.height = `${height}px`;
      const box = element("div", undefined, { class: "matrix", tabindex: "0", role: "region", "aria-label": `Matrix ${p.name}`.trim() });
      box.append(labels, canvas);
      byId("matrix").append(titled(p, box));
      return canvas;
    });
  }
  function makePicture() {
    if (!data.picture) return;
    const image = element("img", undefined, { src: data.picture.source, alt: "The picture of the question" });
    const canvas = element("canvas", undefined, { role: "img", "aria-label": "The values of the picture's patches, over the picture" });
    [canvas.width, canvas.height] = [data.picture.width, data.picture.height];
    canvas.addEventListener("mousemove", (e) => {
      const box = canvas.getBoundingClientRect();
      const k = patchAt((e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height);
      const row = rowOf(first, chosen.t, chosen.l, chosen.h);
      canvas.title = k < 0 || !row ? "" : `patch ${k}: ${shown(row[k])}${unit}`;
    });
    canvas.addEventListener("click", (e) => {
      const box = canvas.getBoundingClientRect();
      const k = patchAt((e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height);
      if (k >= 0) choose({ k: chosen.k === k ? -1 : k });
    });
    places.picture = canvas;
    byId("picture").append(image, canvas);
  }
  function patchAt(x, y) {
    for (const { places: grid, box: [left, top, right, bottom] } of [...data.picture.maps].reverse()) {
      const r = Math.floor(((y - top) / (bottom - top)) * grid.length);
      const c = Math.floor(((x - left) / (right - left)) * grid[0].length);
      if (grid[r] && grid[r][c] !== undefined) return grid[r][c];
    }
    return -1;
  }

  // What each choice changes.
  function choose(changes) {
    Object.assign(chosen, changes);
    if (chosen.l < 0) chosen.h = -1;
    writeAddress();
    draw();
  }
  function draw() {
    const where = chosen.l < 0 ? "all layers" : `layer ${first.layers[chosen.l]}${chosen.h < 0 ? "" : `, head ${chosen.h}`}`;
    byId("pick-layer").value = String(chosen.l);
    byId("pick-head").value = String(chosen.h);
    byId("pick-head").disabled = chosen.l < 0;
    places.targets.forEach((b, t) => b.setAttribute("aria-pressed", String(t === chosen.t)));
    drawText(where);
    drawGroups();
    drawHeads();
    drawMatrices();
    drawPicture();
    drawLegend(where);
    byId("token-picker").hidden = chosen.k < 0;
    byId("token-shown").textContent = chosen.k < 0 ? "" : `“${called(first, chosen.k)}” (${chosen.k})`;
  }
  function drawText(where) {
    const told = [];
    panels.forEach((p, n) => {
      const [at, said] = p.targets[chosen.t];
      const row = rowOf(p, chosen.t, chosen.l, chosen.h);
      const sums = row && p.shown.map(([start, stop]) => row.subarray(start, stop).reduce((sum, x) => sum + x, 0));
      places.tokens[n].forEach((b, j) => {
        const [i, stop, text] = p.shown[j];
        const c = colour(row ? sums[j] : NaN, scaleOf());
        b.style.background = css(c);
        b.style.color = ink(c);
        b.classList.toggle("now", i <= at && at < stop);
        b.classList.toggle("key", i <= chosen.k && chosen.k < stop);
        const number = row ? `${shown(sums[j])}${unit}` : "not in the page";
        b.title = `${named(text)} (${stop - i > 1 ? `${i} to ${stop - 1}` : i}): ${number}`;
        b.setAttribute("aria-label", b.title);
      });
      if (!row) return told.push(`${p.name ? `${p.name}: ` : ""}the row of ${where} is not in this page, since it is small.`);
      const order = Array.from(sums.keys()).filter((j) => (signed ? sums[j] < 0 : sums[j] > 0)).sort((a, b) => Math.abs(sums[b]) - Math.abs(sums[a])).slice(0, 3);
      const best = order.map((j) => `“${named(p.shown[j][2])}” ${shown(sums[j])}`).join(", ") || "no token";
      const one = order.length < 2;
      const says = signed ? `${best} ${one ? "speaks" : "speak"} most for “${named(said)}”` : `“${named(said)}” attends most to ${best}`;
      told.push(`${p.name ? `${p.name}: ` : ""}${says} (${where}).`);
    });
    byId("told").textContent = told.join(" ");
  }
  function drawGroups() {
    // The sums of the row's values by groups of tokens; those in no group are the rest.
    const lines = panels.map((p) => {
      const row = p.groups.length ? rowOf(p, chosen.t, chosen.l, chosen.h) : null;
      if (!row) return "";
      const sums = p.groups.map((name, g) => [name, row.reduce((sum, x, i) => (p.group[i] === g ? sum + x : sum), 0)]);
      const rest = row.reduce((sum, x, i) => (p.group[i] < 0 ? sum + x : sum), 0);
      return `${p.name ? `${p.name}: ` : ""}${[...sums, ["the rest", rest]].map(([name, x]) => `${name} ${shown(x)}`).join(", ")}`;
    });
    byId("groups").textContent = lines.some(Boolean) ? `Sums by group: ${lines.join("; ")} nats.` : "";
  }
  function drawHeads() {
    const scale = chosen.k < 0 ? scales.total : scales.head;
    const what = chosen.k < 0 ? (signed ? "sum of absolute saliency" : "largest weight") : "from the chosen token";
    byId("heads-note").textContent = chosen.k < 0
      ? (signed ? "How much of the target's surprisal each head moves, either way: the sum of its absolute saliency, the more blue the more. " : "How much each head attends to one token: its largest weight. ") + "Click a head for its row on the text."
      : `What each head ${signed ? "takes" : "attends"} from “${called(first, chosen.k)}”. Click a head for its row on the text.`;
    const paint = (x) => colour(chosen.k < 0 ? -x : x, scale);
    const of = chosen.k < 0 ? (signed ? "nats, the sum of a head's absolute saliency" : "a head's largest weight") : (signed ? "nats" : "attention weight") + " from the chosen token";
    legend(byId("heads-legend"), scale, signed && chosen.k >= 0, true, paint, of);
    panels.forEach((p, n) => places.heads[n].forEach((b, i) => {
      const [l, h] = [Math.floor(i / p.heads), i % p.heads];
      const total = p.totals[headAt(p, chosen.t, l, h)];
      const value = chosen.k < 0 ? total : chosen.k < p.tokens.length ? valueOf(p, chosen.t, l, h, chosen.k) : NaN;
      const absent = !Number.isFinite(total);
      b.hidden = absent;
      b.style.backgroundColor = css(paint(value));
      b.classList.toggle("out", p.places[headAt(p, chosen.t, l, h)] < 0);
      b.setAttribute("aria-pressed", String(l === chosen.l && h === chosen.h));
      b.title = `layer ${p.layers[l]}, head ${h}: ${chosen.k < 0 && signed ? shown(value).replace("+", "") : shown(value)}${Number.isFinite(value) ? unit : ""}, ${what}`;
      b.setAttribute("aria-label", b.title);
    }));
  }
  function drawMatrices() {
    (places.matrices || []).forEach((canvas, n) => {
      const p = panels[n];
      const pen = canvas.getContext("2d");
      const image = pen.createImageData(p.tokens.length, targets);
      for (let t = 0; t < targets; t++) {
        const row = rowOf(p, t, chosen.l, chosen.h);
        for (let k = 0; k < p.tokens.length; k++) {
          const c = colour(row ? row[k] : NaN, scaleOf());
          image.data.set([...c, 255], (t * p.tokens.length + k) * 4);
        }
      }
      pen.putImageData(image, 0, 0);
    });
  }
  function drawPicture() {
    if (!data.picture) return;
    const canvas = places.picture;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const row = rowOf(first, chosen.t, chosen.l, chosen.h);
    if (!row) return;
    for (const { places: grid, box: [left, top, right, bottom] } of data.picture.maps) {
      grid.forEach((cells, r) => cells.forEach((k, c) => {
        const share = Math.sqrt(Math.min(1, Math.abs(row[k]) / scaleOf()));
        const [x, y] = [left + ((right - left) * c) / cells.length, top + ((bottom - top) * r) / grid.length];
        pen.fillStyle = css(row[k] < 0 || !signed ? ends.low : ends.high);
        pen.globalAlpha = 0.85 * share;
        pen.fillRect(x * canvas.width, y * canvas.height, ((right - left) / cells.length) * canvas.width + 0.5, ((bottom - top) / grid.length) * canvas.height + 0.5);
      }));
    }
    pen.globalAlpha = 1;
  }
  // A bar of colours up to a scale's end, below 0 too if there are two sides; if it is open, the ends stand for all beyond.
  function legend(place, scale, sides, open, paint, says) {
    const stops = Array.from({ length: 41 }, (_, i) => (sides ? (i - 20) / 20 : i / 40)).map((s) => css(paint(s * scale)));
    const bar = element("div", undefined, { class: "bar" });
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    const marks = (sides ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((s) => element("span", `${open && s === 1 ? "≥ " : open && s === -1 ? "≤ " : ""}${sides ? shown(s * scale) : shown(s * scale).replace("+", "")}`));
    const ticks = element("div", undefined, { class: "ticks" });
    ticks.append(...marks);
    place.replaceChildren(bar, ticks, element("div", `${says}; a colour's strength is the square root of its share`));
  }
  function drawLegend(where) {
    const scale = scaleOf();
    const says = signed ? `nats at the prediction position, ${where}: blue lowers the surprisal, orange raises it` : `attention weight, ${where === "all layers" ? "mean over layers and heads" : chosen.h < 0 ? `${where}, mean over heads` : where}`;
    legend(byId("legend"), scale, signed, chosen.l >= 0, (x) => colour(x, scale), says);
  }

  // The page.
  const options = (select, items) => select.append(...items.map(([value, text]) => element("option", text, { value })));
  options(byId("pick-layer"), [["-1", "all layers"], ...first.layers.map((layer, l) => [String(l), `layer ${layer}`])]);
  options(byId("pick-head"), [["-1", "all heads"], ...Array.from({ length: first.heads }, (_, h) => [String(h), `head ${h}`])]);
  byId("pick-layer").addEventListener("change", (e) => choose({ l: Number(e.target.value), h: -1 }));
  byId("pick-head").addEventListener("change", (e) => choose({ h: Number(e.target.value) }));
  byId("no-token").addEventListener("click", () => choose({ k: -1 }));
  const left = panels.reduce((sum, p) => sum + p.left_out, 0);
  byId("lead").textContent = `${first.tokens.length} tokens, ${targets} ${signed ? (targets > 1 ? "targets" : "target") : targets > 1 ? "rows" : "row"}, ${first.layers.length} layers of ${first.heads} heads.`
    + (signed ? " After each target stands its surprisal in nats." : "") + (left ? ` ${left} rows of heads with little in them are left out.` : "");
  addEventListener("hashchange", () => { readAddress(); draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); draw(); });
  readColours();
  readAddress();
  makeTargets();
  makeText();
  makeHeads();
  makeMatrix();
  makePicture();
  draw();
  document.body.dataset.ready = "true";
})();
