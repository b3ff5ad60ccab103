"use strict";
(() => {
  const table = document.getElementById("rows");
  const more = document.getElementById("more");
  more.addEventListener("change", () => table.classList.toggle("all", more.checked));
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const gap = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -gap : gap;
    });
    table.tBodies[0].append(...rows);
  }));

  const box = document.getElementById("closer");
  const data = document.getElementById("tiles");
  if (!box || !data) return;
  const photos = JSON.parse(data.textContent);
  const make = (tag, parent, more = {}) => parent.appendChild(Object.assign(document.createElement(tag), more));
  const stage = make("div", box, { className: "stage" });
  const [under, over] = [make("img", stage), make("img", stage)];
  const line = make("i", stage);
  const [left, right] = [make("b", stage, { className: "left" }), make("b", stage, { className: "right" })];
  const form = make("div", box);
  make("h3", form, { textContent: "Look closer", style: "margin-top:0" });
  make("p", form, { className: "hint", textContent: "Drag over the picture to wipe between two of them." });
  const select = (name, options, chosen) => {
    const field = make("select", make("label", form, { textContent: name }));
    options.forEach((text, index) => make("option", field, { value: index, textContent: text }));
    field.selectedIndex = chosen;
    field.addEventListener("change", show);
    return field;
  };
  const labels = photos[0].tiles;
  const images = [...document.querySelectorAll(".strip")].map((strip) => [...strip.querySelectorAll("img")]);
  const photo = select("Photo", photos.map((one) => `${one.photo} (${one.why})`), 0);
  const first = select("Left", labels, Math.min(1, labels.length - 1));
  const second = select("Right", labels, Math.max(0, labels.length - 2));
  const slider = make("input", make("label", form, { textContent: "Position" }), {
    type: "range", min: 0, max: 100, value: 50,
  });
  function wipe() {
    over.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    line.style.left = `${slider.value}%`;
  }
  function show() {
    const [a, b] = [images[photo.value][first.value], images[photo.value][second.value]];
    if (!a || !b) return;
    [under.src, over.src, under.alt, over.alt] = [a.src, b.src, a.alt, b.alt];
    [left.textContent, right.textContent] = [a.alt, b.alt];
    wipe();
  }
  const drag = (event) => {
    if (event.type === "pointerdown") stage.setPointerCapture(event.pointerId);
    else if (!event.buttons) return;
    const frame = stage.getBoundingClientRect();
    slider.value = Math.min(100, Math.max(0, (100 * (event.clientX - frame.left)) / frame.width));
    wipe();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  slider.addEventListener("input", wipe);
  box.hidden = false;
  show();
})();
