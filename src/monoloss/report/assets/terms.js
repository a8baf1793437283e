// Shows the explanation of a term beside it while the term is pointed at or has the focus, and after a tap.
(() => {
  "use strict";
  const tip = document.getElementById("tip");
  let owner = null;

  function show(element) {
    const text = document.getElementById(`term-${element.dataset.term}`)?.textContent;
    if (!text) return;
    owner = element;
    tip.textContent = text;
    tip.hidden = false;
    const box = element.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 6;
    const top = below + height > window.innerHeight - 8 ? Math.max(8, box.top - height - 6) : below;
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  }

  function hide() {
    owner = null;
    tip.hidden = true;
  }

  const termOf = (event) => (event.target instanceof Element ? event.target.closest("[data-term]") : null);
  document.addEventListener("pointerover", (event) => {
    const term = termOf(event);
    if (term) show(term);
    else if (owner) hide(); // even if a clicked term still has the focus: its explanation would cover the table
  });
  document.addEventListener("focusin", (event) => {
    const term = termOf(event);
    if (term) show(term);
    else hide();
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("click", (event) => {
    const term = termOf(event);
    if (term) show(term);
    else hide();
  });
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && owner) {
      hide();
      event.stopImmediatePropagation();
    }
  });
})();
