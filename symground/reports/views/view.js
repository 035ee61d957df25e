// A view of one text. A target, a layer, a head and a token may be chosen; each choice redraws what shows it.
(async () => {
  const data = JSON.parse(document.getElementById("view-data").textContent);
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
    setAddress(`#${parts.join("&")}`);
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

  const shown = (x) => shownNumber(x, signed);

  const called = (p, k) => named((p.parts.get(k) ?? [k, k + 1, p.tokens[k]])[2]);

  // Parts that are made once.
  const places = {};
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
      const of = new Map(p.targets.slice(0, targets).map(([at], t) => [at, t]).reverse());
      const targetIn = ([start, stop]) => Array.from({ length: stop - start }, (_, j) => of.get(start + j)).find((t) => t !== undefined);
      const { box, buttons } = tokenBox(p.shown.map((part) => part[2]), `Tokens ${p.name}`.trim(), (n, e) => {
        const t = targetIn(p.shown[n]);
        if (t !== undefined && !e.shiftKey) choose({ t });
        else take(...p.shown[n]);
      }, (n) => (n < 0 ? choose({ k: -1 }) : take(...p.shown[n])));
      p.shown.forEach((part, n) => buttons[n].classList.toggle("target", targetIn(part) !== undefined));
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
      const { box, buttons } = headBox(p.layers, p.heads, (l, h) => choose(chosen.l === l && chosen.h === h ? { l: -1, h: -1 } : { l, h }));
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
      const partOf = (i) => p.shown.findIndex(([start, stop]) => start <= i && i < stop);
      paintTokens(places.tokens[n], p.shown, sums, scaleOf(), { signed, unit, now: partOf(at), key: partOf(chosen.k) });
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
    const sides = signed && chosen.k >= 0;  // sums of a head have no sign
    const of = chosen.k < 0 ? (signed ? "nats, the sum of a head's absolute saliency" : "a head's largest weight") : `${signed ? "nats" : "attention weight"} from the chosen token`;
    legendIn(byId("heads-legend"), scale, { signed: sides, open: true, says: of });
    panels.forEach((p, n) => paintHeads(places.heads[n], p.layers, p.heads, scale, sides, (l, h) => {
      const at = headAt(p, chosen.t, l, h);
      const total = p.totals[at];
      const value = chosen.k < 0 ? total : chosen.k < p.tokens.length ? valueOf(p, chosen.t, l, h, chosen.k) : NaN;
      return {
        value, absent: !Number.isFinite(total), out: p.places[at] < 0, pressed: l === chosen.l && h === chosen.h,
        says: `${shownNumber(value, sides)}${Number.isFinite(value) ? unit : ""}, ${what}`,
      };
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
          const c = colours.of(row ? row[k] : NaN, scaleOf(), signed);
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
        pen.fillStyle = colours.css(colours.end(row[k], signed));
        pen.globalAlpha = 0.85 * share;
        pen.fillRect(x * canvas.width, y * canvas.height, ((right - left) / cells.length) * canvas.width + 0.5, ((bottom - top) / grid.length) * canvas.height + 0.5);
      }));
    }
    pen.globalAlpha = 1;
  }
  function drawLegend(where) {
    const scale = scaleOf();
    const says = signed ? `nats at the prediction position, ${where}: blue lowers the surprisal, orange raises it` : `attention weight, ${where === "all layers" ? "mean over layers and heads" : chosen.h < 0 ? `${where}, mean over heads` : where}`;
    legendIn(byId("legend"), scale, { signed, open: chosen.l >= 0, says });
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
  colours.whenever(draw);
  readAddress();
  makeTargets();
  makeText();
  makeHeads();
  makeMatrix();
  makePicture();
  draw();
  document.body.dataset.ready = "true";
})();
