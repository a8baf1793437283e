// Builds the view of a latent, beside its closest match in another run.
window.Latents = window.Latents || {};
(() => {
  "use strict";
  const { figure, percent, className, count, edges, stores, terms, sheet, isMissing, DASH, FEW_ROWS } = Latents.data;

  function make(tag, attributes = {}, ...content) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...content);
    return element;
  }

  const isolated = (text, tag = "bdi") => make(tag, {}, text);

  const SHORT = { purity_weighted: "weighted" };

  function term(name) {
    return make(
      "span",
      { class: "term", tabindex: "0", "data-term": name, "aria-describedby": `term-${name}` },
      SHORT[name] ?? terms[name]?.label ?? name,
    );
  }

  const labelsOf = (side, item) => item.labels.map((label) => className(side.run.store, label)).join(", ");

  // ---- the figures of a latent ----

  const FIGURES = [
    ["score", 3],
    ["lift", 3],
    ["n_eff", 1],
    ["density", null],
    ["purity_binary", 3],
    ["purity_weighted", 3],
  ];
  const BETTER = new Set(["score", "lift", "purity_binary", "purity_weighted"]); // measures of which more is better

  // Builds the difference to the same measure of the other latent, empty unless both are defined.
  function difference(key, digits, side, against) {
    const by = against ? side.columns[key][side.latent] - (against.columns[key]?.[against.latent] ?? NaN) : NaN;
    if (!BETTER.has(key) || Number.isNaN(by)) return "";
    const text = figure(by, digits);
    if (Number(by.toFixed(digits)) === 0) return make("span", { class: "difference" }, "\u00b10");
    return make("span", { class: `difference ${by > 0 ? "better" : "worse"}` }, by > 0 ? `+${text}` : text);
  }

  // Builds the list of a latent's measures, with differences to the side `against`; null for none.
  function figures(side, against) {
    const { columns, latent } = side;
    const list = make("dl", { class: "figures" });
    const add = (key, text, kind = "", after = "") =>
      list.append(
        make("div", { "data-figure-of": key, class: kind }, make("dt", {}, term(key)), make("dd", {}, make("span", { class: "value" }, text), " ", after)),
      );
    const weak = columns.n_eff?.[latent] < FEW_ROWS;
    for (const [key, digits] of FIGURES) {
      if (!(key in columns)) continue;
      const text = digits === null ? percent(columns[key][latent]) : figure(columns[key][latent], digits);
      add(key, text, weak && (key === "score" || key === "lift") ? "weak" : "", difference(key, digits, side, against));
    }
    if (columns.dominant_class) {
      const number = columns.dominant_class[latent];
      add("dominant_class", number < 0 ? DASH : isolated(className(side.run.store, number)));
    }
    return list;
  }

  // ---- example rows: images, or ids in their place ----

  function image(side, item) {
    const { source, columns, column, line } = sheet(side.run.store, item);
    const picture = make("img", { src: source, alt: "", decoding: "async", draggable: "false" });
    picture.style.width = `${100 * columns}%`;
    picture.style.left = `${-100 * column}%`;
    picture.style.top = `${-100 * line}%`;
    return picture;
  }

  function frame(side, item) {
    return make("span", { class: "frame" }, image(side, item));
  }

  function shot(side, [item, value], place) {
    const facts = side.items.get(item);
    const labels = labelsOf(side, facts);
    const button = make("button", {
      type: "button",
      class: "shot",
      tabindex: place === 0 ? "0" : "-1",
      "aria-label": [facts.id, labels, `activation ${value}`].filter(Boolean).join(", "),
    });
    const withoutImage = () => {
      button.classList.add("missing");
      button.replaceChildren(isolated(facts.id));
      button.describe = () => [caption(facts, labels, value)];
    };
    if (isMissing(side.run.store, item)) {
      withoutImage();
      return button;
    }
    const box = frame(side, item);
    box.firstChild.addEventListener("error", withoutImage);
    button.append(box);
    button.describe = () => [frame(side, item), caption(facts, labels, value)];
    return button;
  }

  function caption(facts, labels, value) {
    const text = make("span", { class: "caption" }, isolated(facts.id, "strong"));
    if (labels) text.append(make("span", { dir: "auto" }, labels));
    text.append(make("span", {}, `activation ${value}`), make("span", { class: "quiet" }, `row ${facts.row}`));
    return text;
  }

  function line(side, [item, value]) {
    const facts = side.items.get(item);
    const entry = make("li", {}, isolated(facts.id));
    if (facts.labels.length) entry.append(make("span", { class: "quiet", dir: "auto" }, labelsOf(side, facts)));
    entry.append(make("span", { class: "activation" }, String(value)));
    return entry;
  }

  function rows(side, kind) {
    const examples = side.entry[kind];
    if (!examples) return note("Not kept in the files of this evaluation.");
    if (!examples.length) return note("No active row.");
    if (!stores[side.run.store].cell) return make("ol", { class: "lines" }, ...examples.map((one) => line(side, one)));
    return make("div", { class: "shots", role: "group" }, ...examples.map((one, place) => shot(side, one, place)));
  }

  const note = (text) => make("p", { class: "note" }, text);

  // ---- histogram of the activations ----

  function histogram(side, range) {
    const bins = side.entry.histogram;
    if (!bins) return note("Not kept in the files of this evaluation.");
    if (!bins.length) return note("No active row.");
    const counts = new Map(bins);
    const most = Math.max(...counts.values());
    const total = [...counts.values()].reduce((sum, value) => sum + value, 0);
    const [first, last] = range;
    const short = (value) => String(Number(value.toPrecision(2)));
    const bars = make("div", {
      class: "bars",
      role: "img",
      "aria-label": `${count(total)} active rows, activations from ${short(edges[bins[0][0]])} to ${short(edges[bins.at(-1)[0] + 1])}`,
    });
    for (let bin = first; bin <= last; bin += 1) {
      const n = counts.get(bin) ?? 0;
      const bar = make("span", { title: `${short(edges[bin])} to ${short(edges[bin + 1])}: ${count(n)} rows` });
      bar.style.setProperty("--height", `${(100 * n) / most}%`);
      bars.append(bar);
    }
    const axis = make("div", { class: "axis" });
    axis.append(make("span", {}, short(edges[first])), make("span", {}, `${count(total)} active rows`));
    axis.append(make("span", {}, short(edges[last + 1])));
    return make("div", { class: "histogram" }, bars, axis);
  }

  function sharedRange(sides) {
    const bins = sides.flatMap((side) => (side.entry.histogram ?? []).map(([bin]) => bin));
    return bins.length ? [Math.min(...bins), Math.max(...bins)] : [0, 0];
  }

  // ---- classes ----

  function classes(side) {
    const counts = side.entry.classes;
    if (!counts) return note("Not kept in the files of this evaluation.");
    if (!counts.length) return note("No active row with a class.");
    const total = (side.entry.histogram ?? []).reduce((sum, [, value]) => sum + value, 0);
    const most = counts[0][1];
    const list = make("ol", { class: "classes" });
    for (const [number, rowCount] of counts) {
      const bar = make("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", `${(100 * rowCount) / (total || most)}%`);
      const share = total ? ` (${percent(rowCount / total)})` : "";
      list.append(
        make(
          "li",
          {},
          make("span", { class: "name", dir: "auto", title: className(side.run.store, number) }, className(side.run.store, number)),
          bar,
          make("span", { class: "number" }, `${count(rowCount)}${share}`),
        ),
      );
    }
    return list;
  }

  // ---- similar latents ----

  function similar(side, link) {
    const neighbours = side.entry.similar;
    if (!neighbours) return note(side.run.has_decoder ? "Not kept in the files of this evaluation." : "Only of SAEs.");
    if (!neighbours.length) return note("None.");
    const { columns } = side;
    return make(
      "ol",
      { class: "similar" },
      ...neighbours.map(([latent, cosine]) => {
        const anchor = make("a", { href: link(side.run, latent) }, String(latent));
        const number = columns.dominant_class?.[latent] ?? -1;
        const entry = make("li", {}, anchor, make("span", { class: "number" }, figure(cosine, 2)));
        entry.title = `cosine ${figure(cosine, 4)}`;
        entry.append(
          make("span", { class: "quiet" }, `score ${figure(columns.score[latent], 3)}`),
          make("span", { class: "name", dir: "auto" }, number < 0 ? "" : className(side.run.store, number)),
        );
        return entry;
      }),
    );
  }

  // ---- the whole view ----

  function heading(side, link) {
    const box = make("header", { class: "heading" });
    const title = make("h2", {}, "Latent ", side.match ? make("a", { href: link(side.run, side.latent) }, String(side.latent)) : String(side.latent));
    const of = make("p", {}, isolated(side.run.name));
    if (side.run.baseline && Latents.data.runs.some((run) => run !== side.run && run.group === side.run.group)) {
      of.append(" ", make("span", { class: "badge" }, "baseline"));
    }
    if (side.match) of.append(" ", make("span", { class: "quiet" }, term("match"), `, cosine ${figure(side.cosine, 2)}`));
    box.append(title, of);
    return box;
  }

  function half(side, name, content) {
    const of = `${side.latent}, ${side.run.name}`;
    return make("div", { class: "half", "data-side": name, "data-of": of, role: "group", "aria-label": `latent ${of}` }, ...content);
  }

  // Builds the view; `sides`: the opened latent and, if any, its match, each {run, latent, columns, entry, items}.
  function view(sides, link) {
    const names = ["opened", "match"];
    const halves = (build) => sides.map((side, place) => half(side, names[place], [build(side)].flat()));
    const part = (key, build) =>
      make("section", { class: "part", "data-part": key }, make("h3", {}, term(key)), make("div", { class: "halves" }, ...halves(build)));
    const range = sharedRange(sides);
    // Differences are to the baseline if one of the two runs is a baseline, else to the match.
    const [opened, match] = sides;
    const [compared, reference] = match && opened.run.baseline && !match.run.baseline ? [match, opened] : [opened, match];
    const parts = [
      make("div", { class: "halves headings" }, ...halves((side) => [heading(side, link), figures(side, side === compared ? reference : null)])),
      ...["top", "middle", "bottom"].map((kind) => part(kind, (side) => rows(side, kind))),
      part("histogram", (side) => histogram(side, range)),
    ];
    if (sides.some((side) => side.run.has_labels)) parts.push(part("dominant_class", classes));
    parts.push(part("similar", (side) => similar(side, link)));
    return make("div", { class: sides.length > 1 ? "latent pair" : "latent" }, ...parts);
  }

  Latents.make = make;
  Latents.view = view;
})();
