"use strict";

// Sorting and filtering of a layer's units. Without this file a page shows everything, largest IoU first.
(() => {
  const table = document.querySelector("table.units");
  if (!table) return;

  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells].filter((heading) => heading.dataset.first);
  const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.unit, card]));
  const chips = [...document.querySelectorAll(".chip")];
  const category = document.getElementById("category");
  const search = document.getElementById("search");
  const onlyDetectors = document.getElementById("only-detectors");
  const compareText = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;
  let concept = null; // of the pressed chip

  function matches(row, words) {
    const { unit, detector, category: rowCategory, concept: rowConcept } = row.dataset;
    const text = `${unit} ${rowConcept} ${rowCategory}`.toLowerCase();
    return (
      (!onlyDetectors.checked || detector === "yes") &&
      (!category.value || rowCategory === category.value) &&
      (!concept || (rowConcept === concept.concept && rowCategory === concept.category)) &&
      words.every((word) => (/^\d+$/.test(word) ? unit === word || rowConcept.includes(word) : text.includes(word)))
    );
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    let shownCards = 0;
    for (const row of rows) {
      const card = cards.get(row.dataset.unit);
      row.hidden = !matches(row, words);
      shown += !row.hidden;
      if (card) {
        card.hidden = row.hidden;
        shownCards += !row.hidden;
      }
    }
    for (const chip of chips) {
      chip.setAttribute("aria-pressed", String(chip.dataset === concept));
    }
    document.getElementById("shown").textContent = `${shown} of ${rows.length} units`;
    document.getElementById("none-shown").hidden = shownCards > 0 || cards.size === 0;
  }

  // Rows without a value come last in either direction; ties keep the order of units.
  function sort(heading, direction) {
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const numbers = heading.classList.contains("number");
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => (numbers ? Number(a) - Number(b) : compareText(a, b));
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const missing = (x === "") - (y === "");
      return missing || (x && sign * compare(x, y)) || a.dataset.unit - b.dataset.unit;
    });
    for (const other of headings) other.setAttribute("aria-sort", other === heading ? direction : "none");
    body.append(...rows);
    const ordered = rows.map((row) => cards.get(row.dataset.unit)).filter(Boolean);
    document.getElementById("cards").append(...ordered);
  }

  function clear() {
    category.value = search.value = "";
    concept = null;
  }

  function reveal() {
    const target = /^#unit-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.hidden) {
      clear();
      onlyDetectors.checked = onlyDetectors.checked && target.classList.contains("card");
      filter();
      if (target.hidden) {
        onlyDetectors.checked = false;
        filter();
      }
    }
    target.scrollIntoView();
  }

  for (const heading of headings) {
    const button = heading.querySelector("button");
    heading.querySelector(".unsorted").remove();
    button.hidden = false;
    button.addEventListener("click", () => {
      const { first } = heading.dataset;
      const second = first === "ascending" ? "descending" : "ascending";
      sort(heading, heading.getAttribute("aria-sort") === first ? second : first);
    });
  }
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      concept = chip.dataset === concept ? null : chip.dataset;
      filter();
    });
  }
  document.getElementById("clear").addEventListener("click", () => {
    clear();
    filter();
  });
  for (const control of [category, search, onlyDetectors]) control.addEventListener("input", filter);
  window.addEventListener("hashchange", reveal);

  document.documentElement.classList.add("scripted");
  document.getElementById("toolbar").hidden = false;
  filter();
  reveal();
})();

// A pattern and the same pixels of its image, side by side and large. Without this file a click opens one picture.
(() => {
  if (!document.querySelector(".pairs")) return;

  const dialog = document.createElement("dialog");
  dialog.className = "zoom";
  dialog.setAttribute("aria-label", "A pattern and its image");
  const figure = dialog.appendChild(document.createElement("figure"));
  const [pattern, crop] = [new Image(), new Image()];
  const caption = document.createElement("figcaption");
  figure.append(pattern, crop, caption);
  const bar = dialog.appendChild(document.createElement("nav"));
  let [patterns, crops, place] = [[], [], 0];

  function show(next) {
    place = Math.max(0, Math.min(next, patterns.length - 1));
    for (const [image, links] of [[pattern, patterns], [crop, crops]]) {
      image.src = links[place].href;
      image.alt = links[place].firstElementChild.alt;
    }
    caption.textContent = patterns[place].firstElementChild.title;
  }

  for (const [label, act] of [
    ["← Before", () => show(place - 1)],
    ["Next →", () => show(place + 1)],
    ["Close", () => dialog.close()],
  ]) {
    const button = bar.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", act);
  }
  // What is small enough to tell its pixels apart is shown pixel by pixel.
  for (const image of [pattern, crop]) {
    image.addEventListener("load", () => {
      figure.classList.toggle("pixelated", Math.max(pattern.naturalWidth, pattern.naturalHeight) <= 64);
    });
  }
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(place + step);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".pairs .pattern a, .pairs .crop a");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    const pairs = link.closest(".pairs");
    patterns = [...pairs.querySelectorAll(".pattern a")];
    crops = [...pairs.querySelectorAll(".crop a")];
    show(Math.max(patterns.indexOf(link), crops.indexOf(link)));
    if (!dialog.isConnected) document.body.append(dialog);
    dialog.showModal();
  });
  document.documentElement.classList.add("scripted");
})();
