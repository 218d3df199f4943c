"use strict";
// Colours: the reader's choice is remembered for all pages, if the browser allows it.
const remember = (store, key, value) => {
  try { if (value === undefined) return window[store].getItem(key); window[store].setItem(key, value); } catch { return null; }
};
const paint = (colours) => { document.documentElement.dataset.theme = colours || "system"; };
paint(remember("localStorage", "colours"));

document.addEventListener("DOMContentLoaded", () => {
  const code = document.getElementById("code"), colours = document.getElementById("colours");
  const cells = document.querySelectorAll("details.code");
  document.querySelector(".switches").hidden = false;
  code.hidden = cells.length === 0;

  colours.value = remember("localStorage", "colours") || "";
  colours.addEventListener("change", () => { paint(colours.value); remember("localStorage", "colours", colours.value); });

  const show = (all) => {
    cells.forEach((cell) => { cell.open = all; });
    code.setAttribute("aria-pressed", all);
  };
  const page = "code " + location.pathname;
  if (remember("sessionStorage", page) === "true") show(true);
  code.addEventListener("click", () => {
    show(code.getAttribute("aria-pressed") !== "true");
    remember("sessionStorage", page, code.getAttribute("aria-pressed"));
  });

  // a link to the provenance opens it, and on a phone the contents start folded
  const arrive = () => { if (location.hash === "#provenance") document.querySelector("details.provenance")?.setAttribute("open", ""); };
  addEventListener("hashchange", arrive);
  document.addEventListener("click", (event) => { if (event.target.closest?.('a[href="#provenance"]')) setTimeout(arrive); });
  arrive();
  if (matchMedia("(max-width: 52rem)").matches) document.querySelector(".contents details")?.removeAttribute("open");
});
