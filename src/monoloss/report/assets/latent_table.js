// The table of latents. Sorting and filtering reorder an array of numbers; the document holds only the visible rows.
window.Latents = window.Latents || {};
(() => {
  "use strict";
  const { figure, percent, className, FEW_ROWS } = Latents.data;
  const SPARE_ROWS = 8;

  const COLUMNS = [
    { key: "latent", label: "latent", term: "latent", text: (table, latent) => String(latent) },
    { key: "score", label: "score", term: "score", digits: 3 },
    { key: "lift", label: "lift", term: "lift", digits: 3 },
    { key: "purity_binary", label: "purity", term: "purity_binary", digits: 3 },
    { key: "purity_weighted", label: "weighted", term: "purity_weighted", digits: 3 },
    {
      key: "dominant_class",
      label: "class",
      term: "dominant_class",
      text: (table, latent) => {
        const number = table.columns.dominant_class[latent];
        return number < 0 ? Latents.data.DASH : className(table.run.store, number);
      },
    },
    { key: "n_eff", label: "n_eff", term: "n_eff", digits: 1 },
    { key: "density", label: "density", term: "density", text: (table, latent) => percent(table.columns.density[latent]) },
    { key: "alive", label: "alive", term: "alive", text: (table, latent) => STATES[table.state(latent)] },
  ];
  const STATES = { alive: "yes", undefined: "no", dead: "dead" };

  // Returns the numbers of the latents in ascending order of their keys; of equal keys the lower number first.
  function sorted(keys) {
    const order = Uint32Array.from(keys, (_, place) => place);
    return order.sort((a, b) => keys[a] - keys[b] || a - b);
  }

  class Table {
    constructor(elements, onOpen) {
      this.elements = elements;
      this.onOpen = onOpen;
      this.order = new Uint32Array(0);
      this.sortKey = "score";
      this.descending = true;
      this.cursor = -1;
      this.drawn = new Map();
      const { grid, body, rows } = elements;
      body.addEventListener("scroll", () => this.draw(), { passive: true });
      new ResizeObserver(() => this.draw()).observe(body);
      rows.addEventListener("click", (event) => {
        const row = event.target.closest("[data-latent]");
        if (row) onOpen(Number(row.dataset.latent));
      });
      grid.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && event.target === grid && this.cursor >= 0) onOpen(this.cursor);
      });
    }

    setRun(run, columns) {
      this.run = run;
      this.columns = columns;
      this.n = run.n_latents;
      this.shown = COLUMNS.filter(({ key }) => key === "latent" || key === "alive" || key in columns);
      this.classRanks = this.rankClasses();
      if (!this.shown.some(({ key }) => key === this.sortKey)) this.sortKey = "score";
      this.permutation = null;
      this.cursor = -1;
      this.elements.grid.setAttribute("aria-colcount", String(this.shown.length));
      this.elements.grid.dataset.columns = this.shown.map(({ key }) => key).join(" ");
      this.drawHead();
    }

    // Returns the position of each class in the alphabetical order of the names.
    rankClasses() {
      const classes = this.columns.dominant_class;
      if (!classes) return null;
      const numbers = [...new Set(classes)].filter((number) => number >= 0);
      const names = new Map(numbers.map((number) => [number, className(this.run.store, number)]));
      const { compare } = new Intl.Collator("en", { numeric: true });
      numbers.sort((a, b) => compare(names.get(a), names.get(b)) || a - b);
      return new Map(numbers.map((number, rank) => [number, rank]));
    }

    state(latent) {
      if (!Number.isNaN(this.columns.score[latent])) return "alive";
      return this.columns.density[latent] > 0 ? "undefined" : "dead";
    }

    value(key, latent) {
      return key === "latent" ? latent : this.columns[key][latent];
    }

    sortBy(key, descending) {
      this.sortKey = key;
      this.descending = descending;
      this.permutation = null;
    }

    keys() {
      const sign = this.descending ? -1 : 1;
      const keys = new Float64Array(this.n);
      const ranks = { alive: 2, undefined: 1, dead: 0 };
      for (let latent = 0; latent < this.n; latent += 1) {
        let value;
        if (this.sortKey === "alive") value = ranks[this.state(latent)];
        else if (this.sortKey === "dominant_class") value = this.classRanks.get(this.columns.dominant_class[latent]) ?? NaN;
        else value = this.value(this.sortKey, latent);
        keys[latent] = Number.isNaN(value) ? Infinity : sign * value;
      }
      return keys;
    }

    // Sorts if the order has changed, then shows the latents that pass the filter; null shows all.
    refresh(passes) {
      this.permutation ??= sorted(this.keys());
      this.order = passes ? this.permutation.filter(passes) : this.permutation;
      this.drawn.clear();
      this.elements.rows.replaceChildren();
      this.elements.grid.setAttribute("aria-rowcount", String(this.order.length + 1));
      this.elements.empty.hidden = this.order.length > 0;
      this.drawHead();
      this.draw();
    }

    place(latent) {
      return this.order.indexOf(latent);
    }

    // Returns the latent `step` rows below the cursor; without a cursor the first, or the last for a step up.
    neighbour(step) {
      if (!this.order.length) return -1;
      const place = this.place(this.cursor);
      if (place < 0) return this.order[step > 0 ? 0 : this.order.length - 1];
      return this.order[Math.max(0, Math.min(this.order.length - 1, place + step))];
    }

    get rowHeight() {
      return parseFloat(getComputedStyle(this.elements.grid).getPropertyValue("--row")) || 28;
    }

    get rowsInSight() {
      return Math.max(1, Math.floor(this.elements.body.clientHeight / this.rowHeight) - 1);
    }

    setCursor(latent) {
      this.cursor = latent;
      const place = this.place(latent);
      const { body } = this.elements;
      if (place >= 0) {
        const top = place * this.rowHeight;
        if (top < body.scrollTop) body.scrollTop = top;
        else if (top + this.rowHeight > body.scrollTop + body.clientHeight) {
          body.scrollTop = top + this.rowHeight - body.clientHeight;
        }
      }
      this.draw();
    }

    toTop() {
      this.elements.body.scrollTop = 0;
    }

    drawHead() {
      const { head } = this.elements;
      head.replaceChildren(
        ...this.shown.map(({ key, label, term }) => {
          const cell = document.createElement("div");
          cell.setAttribute("role", "columnheader");
          cell.dataset.column = key;
          const current = key === this.sortKey;
          cell.setAttribute("aria-sort", current ? (this.descending ? "descending" : "ascending") : "none");
          const button = document.createElement("button");
          button.type = "button";
          button.dataset.sort = key;
          button.dataset.term = term;
          button.setAttribute("aria-describedby", `term-${term}`);
          button.textContent = label;
          cell.append(button);
          return cell;
        }),
      );
    }

    draw() {
      const { body, rows, grid } = this.elements;
      if (!this.columns) return;
      const height = this.rowHeight;
      rows.style.height = `${this.order.length * height}px`;
      const first = Math.max(0, Math.floor(body.scrollTop / height) - SPARE_ROWS);
      const last = Math.min(this.order.length, Math.ceil((body.scrollTop + body.clientHeight) / height) + SPARE_ROWS);
      for (const [place, row] of this.drawn) {
        if (place < first || place >= last) {
          row.remove();
          this.drawn.delete(place);
        }
      }
      for (let place = first; place < last; place += 1) {
        if (!this.drawn.has(place)) {
          const row = this.makeRow(place);
          this.drawn.set(place, row);
          rows.append(row);
        }
      }
      let active = null;
      for (const [place, row] of this.drawn) {
        row.style.transform = `translateY(${place * height}px)`;
        const isCursor = this.order[place] === this.cursor;
        row.setAttribute("aria-selected", String(isCursor));
        if (isCursor) active = row.id;
      }
      if (active) grid.setAttribute("aria-activedescendant", active);
      else grid.removeAttribute("aria-activedescendant");
    }

    makeRow(place) {
      const latent = this.order[place];
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      row.setAttribute("aria-rowindex", String(place + 2));
      row.id = `row-${latent}`;
      row.dataset.latent = String(latent);
      row.dataset.state = this.state(latent);
      const weak = this.columns.n_eff?.[latent] < FEW_ROWS;
      for (const column of this.shown) {
        const cell = document.createElement("div");
        cell.setAttribute("role", "gridcell");
        cell.dataset.column = column.key;
        const text = column.text ? column.text(this, latent) : figure(this.columns[column.key][latent], column.digits);
        cell.textContent = text;
        if (column.key === "dominant_class") {
          cell.title = text;
          cell.dir = "auto";
        }
        if (weak && (column.key === "score" || column.key === "lift")) cell.classList.add("weak");
        row.append(cell);
      }
      return row;
    }
  }

  Latents.COLUMNS = COLUMNS;
  Latents.sorted = sorted;
  Latents.Table = Table;
})();
