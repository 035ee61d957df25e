// Tokens and heads in colour: blue below 0, orange above; the square root of the share, so that small values are seen too.
const colours = (() => {
  let ends;
  const rgb = (text) => text.match(/\d+(\.\d+)?/g).slice(0, 3).map(Number);
  function read() {
    const probe = element("span");
    document.body.append(probe);
    const of = (name) => { probe.style.color = `var(${name})`; return rgb(getComputedStyle(probe).color); };
    ends = { none: of("--card"), low: of("--low"), high: of("--high") };
    probe.remove();
  }
  const end = (value, signed) => (value < 0 || !signed ? ends.low : ends.high);
  function of(value, scale, signed = true) {
    if (!Number.isFinite(value)) return ends.none;
    const share = Math.sqrt(Math.min(1, Math.abs(value) / scale));
    return ends.none.map((c, i) => Math.round(c + (end(value, signed)[i] - c) * share));
  }
  const css = (c) => `rgb(${c.join(",")})`;
  const light = (c) => {
    const [r, g, b] = c.map((x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ink = (c) => (light(c) > 0.179 ? "#000" : "#fff");  // of the two, the one with more contrast
  function paint(made, value, scale, signed) {
    const c = of(value, scale, signed);
    made.style.background = css(c);
    made.style.color = ink(c);
  }
  /** Calls the function now and whenever the page changes between light and dark. */
  function whenever(draw) {
    read();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { read(); draw(); });
  }
  return { of, end, css, paint, whenever };
})();

const shownNumber = (x, signed = true) => {
  if (!Number.isFinite(x)) return "not in the page";
  const digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 1 ? 2 : Math.abs(x) >= 0.001 || x === 0 ? 3 : 5;
  return `${signed && x > 0 ? "+" : ""}${x.toFixed(digits)}`;
};
const visible = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "→") || "∅";
const named = (token) => token.trim() || visible(token).trim() || "a space";
/** The value below which a share of the positive values lie; 1 without any. */
const upTo = (values, share) => {
  const sorted = values.filter((x) => x > 0).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 1;
};

/** A box of tokens as buttons; a click or the key k chooses one. */
function tokenBox(tokens, label, onClick, onKey) {
  const box = element("div", undefined, { class: "text", role: "group", "aria-label": label });
  const buttons = tokens.map((token, i) => {
    const made = element("button", visible(token), { type: "button", class: "told" });
    made.tabIndex = i ? -1 : 0;
    made.addEventListener("click", (e) => onClick(i, e));
    return made;
  });
  buttons.forEach((b, i) => box.append(b, ...(tokens[i].includes("\n") ? [element("br")] : [])));
  box.addEventListener("keydown", (e) => {
    if (e.key.toLowerCase() === "k") onKey(buttons.indexOf(document.activeElement));
    else move(e, buttons, 1);
  });
  return { box, buttons };
}
/** Colour parts of a text, [first token, last + 1, text] each, by a row of their values; null is not in the page. */
function paintTokens(buttons, parts, row, scale, { signed = true, unit = " nats", now = -1, key = -1 }) {
  buttons.forEach((b, i) => {
    const [start, stop, text] = parts[i];
    colours.paint(b, row ? row[i] : NaN, scale, signed);
    b.classList.toggle("now", i === now);
    b.classList.toggle("key", i === key);
    b.setAttribute("aria-label", `${named(text)} (${stop - start > 1 ? `${start} to ${stop - 1}` : start}): ${row ? `${shownNumber(row[i], signed)}${unit}` : "not in the page"}`);
  });
}

/** A map of layers and heads as buttons. */
function headBox(layers, heads, onClick) {
  const table = element("table");
  table.append(element("caption", "Layers (rows) and heads (columns)"));
  const top = element("tr");
  top.append(element("td"), ...Array.from({ length: heads }, (_, h) => element("th", String(h), { scope: "col" })));
  const head = element("thead");
  head.append(top);
  const body = element("tbody");
  const buttons = [];
  layers.forEach((layer, l) => {
    const row = element("tr");
    row.append(element("th", String(layer), { scope: "row" }));
    for (let h = 0; h < heads; h++) {
      const cell = element("td");
      const made = element("button", undefined, { type: "button", class: "told" });
      made.tabIndex = buttons.length ? -1 : 0;
      made.addEventListener("click", () => onClick(l, h));
      buttons.push(made);
      cell.append(made);
      row.append(cell);
    }
    body.append(row);
  });
  table.append(head, body);
  const box = element("div", undefined, { class: "heads" });
  box.append(table);
  box.addEventListener("keydown", (e) => move(e, buttons, heads));
  return { box, buttons };
}
/** Colour the map: of(l, h) is {value, says, absent, out, pressed}; totals are blue, whatever their sign. */
function paintHeads(buttons, layers, heads, scale, signed, of) {
  buttons.forEach((b, i) => {
    const [l, h] = [Math.floor(i / heads), i % heads];
    const { value, says, absent, out, pressed } = of(l, h);
    b.hidden = absent;
    b.style.backgroundColor = colours.css(colours.of(value, scale, signed));
    b.classList.toggle("out", Boolean(out));
    b.setAttribute("aria-pressed", String(pressed));
    b.setAttribute("aria-label", `layer ${layers[l]}, head ${h}: ${says}`);
  });
}

/** The colour scale. If it is open, its ends stand for all values beyond them too. */
function legendIn(place, scale, { signed = true, open = false, says = "" }) {
  const stops = Array.from({ length: 41 }, (_, i) => (signed ? (i - 20) / 20 : i / 40)).map((s) => colours.css(colours.of(s * scale, scale, signed)));
  const bar = element("div", undefined, { class: "bar" });
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  const marks = (signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((s) => element("span", `${open && s === 1 ? "≥ " : open && s === -1 ? "≤ " : ""}${shownNumber(s * scale, signed)}`));
  const ticks = element("div", undefined, { class: "ticks" });
  ticks.append(...marks);
  place.replaceChildren(bar, ticks, element("div", `${says}; a colour's strength is the square root of its share`));
}
