"use strict";
const root = document.documentElement;
const lines = [...document.querySelectorAll(".flow")];
const ends = [...document.querySelectorAll(".end")];
const items = [...document.querySelectorAll("#flows > li")];
const tip = document.getElementById("tip");
const words = (element) => element.textContent.replace(/\s+/g, " ").toLowerCase();

// What a flow says is shown by the page: the browser's own tip would come on top of it.
for (const line of lines) {
  const title = line.querySelector("title");
  line.dataset.about = title.textContent;
  line.setAttribute("aria-label", title.textContent);
  title.remove();
  line.setAttribute("tabindex", "0");
  line.setAttribute("role", "button");
  // Lines are thin: what can be hit is wider than what is seen.
  for (const path of line.querySelectorAll("path:not(.head)")) {
    const wide = path.cloneNode();
    wide.setAttribute("class", "hit");
    line.prepend(wide);
  }
  line.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") show(line, event.clientX, event.clientY);
  });
  line.addEventListener("pointerleave", hide);
  line.addEventListener("focus", () => {
    const at = line.querySelector("rect").getBoundingClientRect();
    show(line, at.left, at.bottom);
  });
  line.addEventListener("blur", hide);
  line.addEventListener("click", () => choose(line.dataset.flow));
  line.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(line.dataset.flow);
    }
  });
}
for (const picture of document.querySelectorAll("#pictures svg")) {
  picture.setAttribute("role", "group");
}

function show(line, x, y) {
  tip.textContent = line.dataset.about;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 12) : y + 18}px`;
}

function hide() {
  tip.hidden = true;
}
addEventListener("scroll", hide, true);

function mark(number) {
  for (const line of lines) {
    line.classList.toggle("chosen", line.dataset.flow === number);
  }
}

// Opens why a flow is there, and nothing else.
function choose(number) {
  hide();
  items.forEach((item, i) => {
    const details = item.querySelector("details");
    if (details) details.open = String(i) === number;
  });
  items[number].hidden = false;
  const summary = items[number].querySelector("summary");
  summary.focus({ preventScroll: true });
  items[number].scrollIntoView({ block: "nearest" });
  mark(number);
}

items.forEach((item, i) => {
  const details = item.querySelector("details");
  if (details) details.addEventListener("toggle", () => details.open && mark(String(i)));
});

const search = document.getElementById("search");
search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  const found = new Set();
  items.forEach((item, i) => {
    const hit = words(item.querySelector("summary") ?? item).includes(wanted);
    item.hidden = !hit;
    if (hit) found.add(String(i));
  });
  for (const line of lines) {
    const faded = !found.has(line.dataset.flow);
    line.classList.toggle("faded", faded);
    line.setAttribute("tabindex", faded ? "-1" : "0");
  }
  let names = 0;
  for (const end of ends) {
    const hit = wanted !== "" && words(end).includes(wanted);
    end.classList.toggle("found", hit);
    if (hit && end.closest(".wide")) names += 1;
  }
  const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
  document.getElementById("found").textContent =
    wanted === "" ? "" : `${count(names, "box").replace("boxs", "boxes")}, ${count(found.size, "line")}`;
});

const theme = document.getElementById("theme");
function isDark() {
  return root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
}
function label() {
  theme.textContent = isDark() ? "Light" : "Dark";
}
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
});
label();
