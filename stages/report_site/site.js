// Sorting, filters, figure choice and linked maps. Without this script every table and figure is on the page all the same.
"use strict";

(() => {
  const make = (tag, fields = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), fields);
    made.append(...children);
    return made;
  };
  const keyOf = (row, place) => row.cells[place].dataset.key;
  const unique = (values) => [...new Set(values)];

  function sortable(grid) {
    const body = grid.querySelector("tbody");
    const heads = [...grid.querySelectorAll("thead th")];
    heads.forEach((head, place) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      const numeric = head.classList.contains("number");
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        // Scores are best seen from the top: numbers fall first, words rise first.
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        const next = before === first ? second : first;
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
        const sign = next === "ascending" ? 1 : -1;
        const rows = [...body.rows].sort((one, other) => {
          const a = keyOf(one, place);
          const b = keyOf(other, place);
          if (a === "" || b === "") return (a === "") - (b === "");
          return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
        });
        body.append(...rows);
      });
    });
  }

  function searchable(grid) {
    const rows = [...grid.querySelectorAll("tbody tr")];
    if (rows.length < 6) return;
    const name = grid.querySelector("caption").textContent;
    const tools = make("div", { className: "tools" });
    const search = make("input", { type: "search" });
    search.setAttribute("aria-label", `Filter ${name}`);
    tools.append(make("label", {}, "Filter", search));
    const choices = [];
    grid.querySelectorAll("thead th").forEach((head, place) => {
      if (!("choice" in head.dataset)) return;
      const values = unique(rows.map((row) => keyOf(row, place))).filter((value) => value !== "");
      if (values.length < 2) return;
      const select = make("select", {}, make("option", { value: "" }, "all"));
      values.forEach((value) => select.append(make("option", { value }, value)));
      const title = head.textContent;
      select.setAttribute("aria-label", `${title} in ${name}`);
      tools.append(make("label", {}, title, select));
      choices.push([place, select]);
    });
    const status = make("span");
    status.setAttribute("role", "status");
    tools.append(status);
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        const chosen = choices.every(([place, select]) => !select.value || keyOf(row, place) === select.value);
        row.hidden = !(chosen && words.every((word) => text.includes(word)));
        shown += row.hidden ? 0 : 1;
      });
      status.textContent = `${shown} of ${rows.length} rows`;
    };
    search.addEventListener("input", apply);
    choices.forEach(([, select]) => select.addEventListener("change", apply));
    grid.prepend(tools);
    apply();
  }

  function chooser(box) {
    const figures = [...box.querySelectorAll("figure")];
    const details = box.querySelector("details");
    const names = Object.keys(figures[0].dataset).filter((name) => name !== "group");
    const tools = make("div", { className: "tools" });
    const selects = names.map((name) => {
      const select = make("select");
      select.setAttribute("aria-label", name);
      unique(figures.map((figure) => figure.dataset[name])).forEach((value) =>
        select.append(make("option", { value }, value)),
      );
      tools.append(make("label", {}, name, select));
      return select;
    });
    const status = make("p", { className: "missing", hidden: true }, "Not measured for this choice.");
    status.setAttribute("role", "status");
    const apply = () => {
      let shown = false;
      figures.forEach((figure) => {
        const wanted = names.every((name, place) => figure.dataset[name] === selects[place].value);
        figure.hidden = !wanted;
        shown = shown || wanted;
      });
      status.hidden = shown;
    };
    box.prepend(tools, status);
    box.append(...figures);
    details.remove();
    selects.forEach((select) => select.addEventListener("change", apply));
    apply();
  }

  function linked(figure) {
    const panels = figure.querySelector(".panels");
    const circles = [...panels.querySelectorAll("circle")];
    const kindOf = (element) => [...element.classList].filter((name) => /^(class-|hollow)/.test(name)).join(" ");
    const light = (wanted, name) => circles.forEach((circle) => circle.classList.toggle(name, wanted(circle)));
    panels.addEventListener("pointerover", (event) => {
      const { i } = event.target.dataset;
      light((circle) => i !== undefined && circle.dataset.i === i, "same");
    });
    figure.querySelectorAll(".legend li").forEach((item) => {
      const kind = kindOf(item.querySelector(".dot"));
      const button = make("button", { type: "button" }, ...item.childNodes);
      button.setAttribute("aria-pressed", "false");
      item.append(button);
      button.addEventListener("click", () => {
        const pressed = button.getAttribute("aria-pressed") !== "true";
        figure.querySelectorAll(".legend button").forEach((other) => other.setAttribute("aria-pressed", "false"));
        button.setAttribute("aria-pressed", String(pressed));
        panels.classList.toggle("linked", pressed);
        light((circle) => pressed && kindOf(circle) === kind, "on");
      });
    });
  }

  document.querySelectorAll(".grid[data-sortable]").forEach(sortable);
  document.querySelectorAll(".grid[data-searchable]").forEach(searchable);
  document.querySelectorAll(".choose").forEach(chooser);
  document.querySelectorAll("figure.maps").forEach(linked);
})();
