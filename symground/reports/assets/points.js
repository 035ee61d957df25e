// The values of figures: beside the pointer, and at the arrow keys once a figure has the focus.
const figureValues = (() => {
  const told = element("div", undefined, { class: "unseen", role: "status", "aria-live": "polite" });
  const hint = element("div", "The arrow keys walk through the figure's values.", { id: "walk-hint", hidden: "" });
  document.body.append(told, hint);
  const textOf = ({ of, x, y }, [, , xText, yText, name]) =>
    [of, name, xText && `${x} ${xText}`.trim(), `${y} ${yText}`.trim()].filter(Boolean).join("; ");

  /** Show the values of an SVG with data-series in the element that holds it. */
  function attach(svg) {
    const series = JSON.parse(svg.dataset.series);
    const holder = svg.parentElement;
    if (!series.length) return;
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    mark.setAttribute("class", "mark");
    svg.append(mark);
    holder.tabIndex = 0;
    holder.setAttribute("role", "application");
    holder.setAttribute("aria-roledescription", "figure");
    holder.setAttribute("aria-describedby", "walk-hint");
    let [s, i] = [-1, 0];
    const clear = () => { mark.removeAttribute("x"); mark.style.display = "none"; tip.hide(); };
    clear();
    function show(loud) {
      const [x, y, , , , width = 0, height = 0] = series[s].points[i];
      const around = width ? 0 : 4;
      for (const [key, value] of Object.entries({ x: x - around, y: y - around, width: width + 2 * around, height: height + 2 * around, rx: around })) mark.setAttribute(key, value);
      mark.style.display = "";
      mark.classList.toggle("cell", width > 0);
      const text = textOf(series[s], series[s].points[i]);
      tip.show(text, mark.getBoundingClientRect());
      if (loud) told.textContent = text;
    }
    const distance = ([x, y, , , , width, height], at) => (width
      ? (at.x >= x && at.x <= x + width && at.y >= y && at.y <= y + height ? 0 : Infinity)
      : Math.hypot(at.x - x, at.y - y));
    svg.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let least = 18;
      let found = false;
      series.forEach(({ points }, a) => points.forEach((point, b) => {
        const away = distance(point, at);
        if (away < least) [least, s, i, found] = [away, a, b, true];
      }));
      if (found) show(false);
      else clear();
    });
    svg.addEventListener("pointerleave", clear);
    holder.addEventListener("blur", clear);
    holder.addEventListener("keydown", (event) => {
      const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
      if (!by) return;
      event.preventDefault();
      if (s < 0) s = 0;
      else {
        const x = series[s].points[i][0];
        s = Math.min(series.length - 1, Math.max(0, s + by[0]));
        const { points } = series[s];
        if (by[0]) i = points.reduce((best, point, at) => (Math.abs(point[0] - x) < Math.abs(points[best][0] - x) ? at : best), 0);
        else i = Math.min(points.length - 1, Math.max(0, i + by[1]));
      }
      show(true);
    });
  }
  document.querySelectorAll("svg[data-series]").forEach(attach);
  return { attach };
})();
