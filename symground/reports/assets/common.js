"use strict";
// What the scripts of every page use: elements, the value that is shown beside a pointer or a focus, and arrow keys.
const byId = (id) => document.getElementById(id);
const element = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;  // never as HTML: the words are anyone's
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const whole = (text, low, high) => Math.min(high, Math.max(low, Number.isFinite(Number(text)) ? Math.round(Number(text)) : low));
const setAddress = (hash) => {
  try { history.replaceState(null, "", hash); } catch { /* a page within another has no address */ }
};

const tip = (() => {
  const box = element("div", undefined, { class: "tip", hidden: "", "aria-hidden": "true" });  // its words are in labels
  document.body.append(box);
  const hide = () => { box.hidden = true; };
  function show(text, { left, top, bottom }) {
    box.textContent = text;
    box.hidden = false;
    const [width, height] = [box.offsetWidth, box.offsetHeight];
    box.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - width - 4))}px`;
    box.style.top = `${top - height - 8 > 0 ? top - height - 8 : bottom + 8}px`;
  }
  // Elements of the class "told" show their label.
  const labelled = (event) => {
    const of = event.target.closest && event.target.closest(".told");
    if (of && of.getAttribute("aria-label")) show(of.getAttribute("aria-label"), of.getBoundingClientRect());
  };
  document.addEventListener("pointerover", labelled);
  document.addEventListener("focusin", labelled);
  for (const end of ["pointerout", "focusout"]) document.addEventListener(end, (e) => e.target.closest && e.target.closest(".told") && hide());
  document.addEventListener("keydown", (e) => e.key === "Escape" && hide());
  addEventListener("scroll", hide, { passive: true });
  return { show, hide };
})();

// Arrow keys move the focus within a group of buttons, of which one can be reached with the tab key.
function move(event, buttons, step) {
  const at = buttons.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + step, ArrowUp: at - step, Home: 0, End: buttons.length - 1 }[event.key];
  if (at < 0 || to === undefined || !buttons[to]) return;
  event.preventDefault();
  buttons[at].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
}
