// Wide tables scroll in boxes that the theme makes when the page is there; the keyboard reaches what can be scrolled.
const reach = () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .figure")) box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
  document.querySelectorAll(".md-code__nav").forEach((each, i) => each.setAttribute("aria-label", `Block ${i + 1}`));
};
document.addEventListener("DOMContentLoaded", () => {
  reach();
  new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
});
