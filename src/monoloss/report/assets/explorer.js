// The explorer: keeps its state (run, latent, filters) in step with the address, the controls and the page.
(() => {
  "use strict";
  const { runs, stores, terms, columns, latent: loadLatent, items, className, count, figure } = Latents.data;
  const { Table, COLUMNS, make, view } = Latents;
  const at = (id) => document.getElementById(id);
  const wide = window.matchMedia("(min-width: 900px)");
  const ROWS_TO_SHOW = 15;
  const MEASURES = ["score", "lift", "purity_binary", "purity_weighted", "n_eff", "density"];

  const state = {
    run: null, // entry of MONOLOSS.runs
    columns: null,
    latent: -1, // number of the open latent; -1 for none
    partner: null, // key of the run shown beside it, "" for no run, null for the default
    dismissed: false, // the user closed a latent, so none opens by itself
    ranges: new Map(), // measure -> [at least, at most], null for no bound
    ticket: 0, // number of the latest call that draws; earlier calls stop when they see a higher one
  };

  const table = new Table(
    { grid: at("grid"), head: at("head"), body: at("body"), rows: at("rows"), empty: at("empty") },
    (latent) => go({ latent }),
  );

  // ---- the address: #run=NAME&latent=NUMBER&with=NAME ----

  // The address names a run; by its key if the name cannot be encoded. A name wins over another run's equal key.
  const nameOf = (run) => (/\p{Surrogate}/u.test(run.name) ? run.key : run.name);
  const withKey = (key) => runs.find((run) => run.key === key) ?? null;
  const runOf = (text) => runs.find((run) => run.name === text) ?? withKey(text);

  function address({ run = state.run, latent = -1, partner = state.partner } = {}) {
    const parts = [];
    if (run) parts.push(`run=${encodeURIComponent(nameOf(run))}`);
    if (latent >= 0) parts.push(`latent=${latent}`);
    if (partner !== null) parts.push(`with=${partner === "" ? "" : encodeURIComponent(nameOf(withKey(partner)))}`);
    return `#${parts.join("&")}`;
  }

  function parsed() {
    const parameters = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
    const name = parameters.get("run");
    const named = name === null ? null : runOf(name);
    const run = named ?? usualRun();
    const text = parameters.get("latent") ?? "";
    const latent = /^\d+$/.test(text) && Number(text) < run.n_latents ? Number(text) : -1;
    const beside = parameters.get("with");
    const partner = beside === null ? null : beside === "" ? "" : (runOf(beside)?.key ?? null);
    let trouble = "";
    if (name !== null && !named) trouble = `This report has no run ${name}: this is ${run.name}.`;
    else if (text !== "" && latent < 0) trouble = `${run.name} has no latent ${text}: its latents are 0 to ${run.n_latents - 1}.`;
    return { run, latent, partner, trouble };
  }

  // The first run that is not a baseline, else the first.
  const usualRun = () => runs.find((run) => !run.baseline) ?? runs[0];

  // `replace`: without a new entry in the history, so that "back" after steps from latent to latent closes the latent.
  function go(target, { replace = false } = {}) {
    const next = address(target);
    if (target.latent === undefined || target.latent < 0) state.dismissed = true;
    if (next === location.hash) route();
    else if (replace) location.replace(next);
    else location.hash = next;
  }

  async function route() {
    const ticket = (state.ticket += 1);
    try {
      const { run, latent, partner, trouble } = parsed();
      if (run !== state.run) {
        at("grid").setAttribute("aria-busy", "true");
        const loaded = await columns(run);
        if (ticket !== state.ticket) return;
        at("grid").removeAttribute("aria-busy");
        setRun(run, loaded);
      }
      state.partner = partner;
      say(trouble);
      await show(latent >= 0 ? latent : firstToShow(), latent >= 0, ticket);
    } catch (error) {
      if (ticket === state.ticket) say(error.message);
    }
  }

  // The latent that opens by itself on a wide screen: the first in the order with enough rows to fill its examples.
  function firstToShow() {
    if (!wide.matches || state.dismissed || !table.order.length) return -1;
    const { n_eff: effective } = state.columns;
    return table.order.find((latent) => effective?.[latent] >= ROWS_TO_SHOW) ?? table.order[0];
  }

  function say(text) {
    at("trouble").textContent = text;
    at("trouble").hidden = text === "";
  }

  // ---- the table and its filters ----

  function setRun(run, loaded) {
    state.run = run;
    state.columns = loaded;
    state.ranges.clear();
    at("search").value = "";
    at("run").value = run.key;
    table.setRun(run, loaded);
    countStates();
    fillClasses();
    const measures = MEASURES.filter((key) => key in loaded);
    at("measure").replaceChildren(...measures.map((key) => new Option(terms[key]?.label ?? key, key)));
    at("sort").replaceChildren(
      ...table.shown.flatMap(({ key, label }) => [
        new Option(`${label}, highest first`, `${key} down`),
        new Option(`${label}, lowest first`, `${key} up`),
      ]),
    );
    showRange();
    filter();
  }

  function countStates() {
    const counts = { alive: 0, undefined: 0, dead: 0 };
    for (let latent = 0; latent < state.run.n_latents; latent += 1) counts[table.state(latent)] += 1;
    for (const option of at("alive").options) {
      const label = (option.dataset.label ??= option.text);
      if (option.value) option.text = `${label} (${count(counts[option.value])})`;
    }
  }

  function fillClasses() {
    const classes = state.columns.dominant_class;
    at("class-label").hidden = !classes;
    at("class").replaceChildren(new Option("all", ""));
    if (!classes) return;
    const counts = new Map();
    for (const number of classes) if (number >= 0) counts.set(number, (counts.get(number) ?? 0) + 1);
    const ordered = [...counts.keys()].sort((a, b) => table.classRanks.get(a) - table.classRanks.get(b));
    at("class").append(
      ...ordered.map((number) => {
        const option = new Option(`${className(state.run.store, number)} (${counts.get(number)})`, String(number));
        option.dir = "auto";
        return option;
      }),
    );
  }

  // Returns a function that tells whether a latent passes all filters; null without a filter.
  function filters() {
    const checks = [];
    const text = at("search").value.trim().toLowerCase();
    const classes = state.columns.dominant_class;
    if (text) {
      const fits = new Set();
      if (classes) for (const number of new Set(classes)) if (number >= 0 && className(state.run.store, number).toLowerCase().includes(text)) fits.add(number);
      const isNumber = /^\d+$/.test(text);
      checks.push((latent) => (isNumber && String(latent).startsWith(text)) || (fits.size > 0 && fits.has(classes[latent])));
    }
    const alive = at("alive").value;
    if (alive) checks.push((latent) => table.state(latent) === alive);
    const chosen = at("class").value;
    if (chosen !== "" && classes) checks.push((latent) => classes[latent] === Number(chosen));
    for (const [key, [least, most]] of state.ranges) {
      const values = state.columns[key];
      checks.push((latent) => values[latent] >= (least ?? -Infinity) && values[latent] <= (most ?? Infinity));
    }
    return checks.length ? (latent) => checks.every((check) => check(latent)) : null;
  }

  function filter() {
    table.refresh(filters());
    at("sort").value = `${table.sortKey} ${table.descending ? "down" : "up"}`;
    at("count").textContent = `${count(table.order.length)} of ${count(state.run.n_latents)} latents`;
    at("chips").replaceChildren(...chips());
    showPosition();
  }

  function chips() {
    const all = [...state.ranges].map(([key, [least, most]]) => {
      const label = terms[key]?.label ?? key;
      const text = least === null ? `${label} ≤ ${most}` : most === null ? `${label} ≥ ${least}` : `${least} ≤ ${label} ≤ ${most}`;
      return chip(text, () => state.ranges.delete(key));
    });
    const isSet = all.length || at("search").value.trim() || at("alive").value || at("class").value;
    if (isSet) {
      all.push(
        chip("clear all", () => {
          state.ranges.clear();
          for (const id of ["search", "alive", "class"]) at(id).value = "";
        }),
      );
    }
    return all;
  }

  function chip(text, undo) {
    const button = make("button", { type: "button", class: "chip" }, text, " ×");
    button.addEventListener("click", () => {
      undo();
      showRange();
      table.toTop();
      filter();
    });
    return button;
  }

  function showRange() {
    const [least, most] = state.ranges.get(at("measure").value) ?? [null, null];
    at("at-least").value = least ?? "";
    at("at-most").value = most ?? "";
  }

  function readRange() {
    const bound = (id) => (at(id).value === "" || Number.isNaN(at(id).valueAsNumber) ? null : at(id).valueAsNumber);
    const range = [bound("at-least"), bound("at-most")];
    if (range[0] === null && range[1] === null) state.ranges.delete(at("measure").value);
    else state.ranges.set(at("measure").value, range);
  }

  function sortBy(key, descending) {
    table.sortBy(key, descending);
    table.toTop();
    filter();
  }

  // ---- the latent that is open ----

  // Returns the runs with a match of the latent, and the default: the baseline; for a baseline the last of its group.
  function partners(entry) {
    const matched = runs.filter((run) => run !== state.run && entry.matches?.[run.key]);
    const group = matched.filter((run) => run.group === state.run.group);
    const usual = state.run.baseline ? group.at(-1) : group.find((run) => run.baseline);
    return { matched, usual: usual ?? group[0] ?? matched[0] ?? null };
  }

  async function side(run, latent) {
    const [loaded, entry] = await Promise.all([columns(run), loadLatent(run, latent)]);
    const shown = [entry.top, entry.middle, entry.bottom].flatMap((examples) => (examples ?? []).map(([item]) => item));
    return { run, latent, columns: loaded, entry, items: await items(run.store, [...new Set(shown)]) };
  }

  async function show(latent, isChosen, ticket) {
    const detail = at("detail");
    if (latent < 0) {
      state.latent = -1;
      document.body.classList.remove("open");
      at("list").inert = false;
      at("view").replaceChildren();
      detail.classList.add("nothing");
      table.draw();
      return;
    }
    const opened = await side(state.run, latent);
    const { matched, usual } = partners(opened.entry);
    const beside = state.partner === null ? usual : (matched.find((run) => run.key === state.partner) ?? null);
    const sides = [opened];
    if (beside) {
      const [number, cosine] = opened.entry.matches[beside.key];
      sides.push({ ...(await side(beside, number)), match: true, cosine });
    }
    if (ticket !== state.ticket) return;
    state.latent = latent;
    if (isChosen) state.dismissed = false;
    detail.classList.remove("nothing");
    document.body.classList.toggle("open", isChosen);
    at("list").inert = isChosen && !wide.matches;
    fillPartners(matched, beside);
    hideBubble();
    const link = (run, number) => address({ run, latent: number, partner: run === state.run ? state.partner : null });
    at("view").replaceChildren(view(sides, link));
    table.setCursor(latent);
    showPosition();
    if (isChosen) detail.scrollTop = 0;
    if (isChosen && !wide.matches) detail.focus();
  }

  function fillPartners(matched, beside) {
    const options = [new Option("nothing", ""), ...matched.map((run) => new Option(run.name, run.key))];
    at("partner").replaceChildren(...options);
    at("partner").value = beside?.key ?? "";
    at("partner-label").hidden = !matched.length;
    at("alone").hidden = matched.length > 0 || runs.length < 2;
    at("alone").textContent = state.run.has_decoder
      ? "No other run of this report has decoders that these latents can be matched with."
      : "Latents are matched by their decoders; this run has none.";
  }

  function showPosition() {
    const place = state.latent < 0 ? -1 : table.place(state.latent);
    at("position").textContent = place < 0 ? "" : `${count(place + 1)} of ${count(table.order.length)}`;
    at("previous").disabled = place === 0;
    at("next").disabled = place >= 0 && place === table.order.length - 1;
  }

  function step(by) {
    const isOpen = state.latent >= 0;
    const next = table.neighbour(by);
    if (next < 0 || next === state.latent) return;
    if (isOpen) go({ latent: next }, { replace: document.body.classList.contains("open") });
    else table.setCursor(next);
  }

  function close() {
    go({ latent: -1 });
    at("grid").focus({ preventScroll: true });
  }

  // ---- the larger picture of an image ----

  let bubbleOf = null;

  function showBubble(button) {
    if (!button.describe) return;
    const bubble = at("bubble");
    bubbleOf = button;
    bubble.replaceChildren(...button.describe());
    bubble.hidden = false;
    const box = button.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = bubble;
    const left = Math.max(8, Math.min(box.left + box.width / 2 - width / 2, document.documentElement.clientWidth - width - 8));
    const above = box.top - height - 6;
    bubble.style.left = `${left}px`;
    bubble.style.top = `${above < 8 ? Math.min(box.bottom + 6, innerHeight - height - 8) : above}px`;
  }

  function hideBubble() {
    bubbleOf = null;
    at("bubble").hidden = true;
  }

  function watchImages() {
    const shotOf = (event) => (event.target instanceof Element ? event.target.closest(".shot") : null);
    const area = at("view");
    area.addEventListener("pointerover", (event) => {
      const button = shotOf(event);
      if (button && button !== bubbleOf) showBubble(button);
      else if (!button) hideBubble();
    });
    area.addEventListener("pointerleave", hideBubble);
    area.addEventListener("focusin", (event) => {
      const button = shotOf(event);
      if (button) showBubble(button);
      else hideBubble();
    });
    area.addEventListener("focusout", hideBubble);
    area.addEventListener("click", (event) => {
      const button = shotOf(event);
      if (button) showBubble(button);
    });
    document.addEventListener("scroll", hideBubble, { capture: true, passive: true });
    area.addEventListener("keydown", (event) => {
      const button = shotOf(event);
      const by = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
      const next = button && by ? button[by] : null;
      if (!next) return;
      button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      event.preventDefault();
    });
  }

  // ---- input of the user ----

  function watch() {
    at("run").addEventListener("change", (event) => {
      state.dismissed = false;
      location.hash = address({ run: withKey(event.target.value), partner: null });
    });
    at("partner").addEventListener("change", (event) => {
      go({ latent: state.latent, partner: event.target.value }, { replace: true });
    });
    for (const id of ["search", "alive", "class"]) {
      at(id).addEventListener("input", () => {
        table.toTop();
        filter();
      });
    }
    at("measure").addEventListener("change", showRange);
    for (const id of ["at-least", "at-most"]) {
      at(id).addEventListener("input", () => {
        readRange();
        table.toTop();
        filter();
      });
    }
    at("sort").addEventListener("change", (event) => {
      const [key, direction] = event.target.value.split(" ");
      sortBy(key, direction === "down");
    });
    at("head").addEventListener("click", (event) => {
      const key = event.target.closest("[data-sort]")?.dataset.sort;
      if (!key) return;
      const startsUp = key === "latent" || key === "dominant_class";
      sortBy(key, key === table.sortKey ? !table.descending : !startsUp);
      at("head").querySelector(`[data-sort="${key}"]`).focus();
    });
    at("filters").addEventListener("submit", (event) => {
      event.preventDefault();
      const number = at("search").value.trim();
      const exact = /^\d+$/.test(number) && table.place(Number(number)) >= 0 ? Number(number) : table.order[0];
      if (exact !== undefined && document.activeElement === at("search")) go({ latent: exact });
    });
    at("search").addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        at("filters").requestSubmit();
      }
    });
    at("previous").addEventListener("click", () => step(-1));
    at("next").addEventListener("click", () => step(1));
    at("close").addEventListener("click", close);
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", route);
    wide.addEventListener("change", route);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const isField = event.target instanceof Element && event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (isField) event.target.blur();
      else if (!at("bubble").hidden) hideBubble();
      else if (state.latent >= 0) close();
      return;
    }
    if (isField) return;
    const page = table.rowsInSight;
    const far = table.order.length;
    const inGrid = event.target === at("grid") || event.target === document.body;
    const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
    const jumps = inGrid ? { PageDown: page, PageUp: -page, Home: -far, End: far } : {};
    const by = steps[event.key] ?? jumps[event.key];
    if (by !== undefined) {
      event.preventDefault();
      step(by);
    } else if (event.key === "Enter" && event.target === document.body && table.cursor >= 0) {
      go({ latent: table.cursor });
    } else if (event.key === "/") {
      event.preventDefault();
      at("search").focus();
      at("search").select();
    }
  }

  function start() {
    at("explorer").hidden = false;
    if (!runs.length) {
      say("data/runs.js cannot be loaded: is the folder of the report whole?");
      return;
    }
    const groups = new Map();
    for (const run of runs) groups.set(run.group, [...(groups.get(run.group) ?? []), run]);
    at("run").append(
      ...[...groups].map(([label, members]) =>
        make("optgroup", { label }, ...members.map((run) => new Option(run.name, run.key))),
      ),
    );
    watch();
    watchImages();
    route();
  }

  start();
})();
