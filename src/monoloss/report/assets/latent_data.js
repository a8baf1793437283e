// Loads the explorer's data: script files that add to window.MONOLOSS, each loaded at its first use.
window.Latents = window.Latents || {};
(() => {
  "use strict";
  const DATA = (window.MONOLOSS = window.MONOLOSS || {});
  const loading = new Map();
  const columnsOf = new Map();
  const MINUS = "\u2212";
  const DASH = "\u2013";
  const FEW_ROWS = 4.95; // effective rows below which a score says little; 4.95 is shown as 5.0

  const four = (number) => String(number).padStart(4, "0");

  function load(source) {
    if (!loading.has(source)) {
      const loaded = new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = source;
        script.onload = resolve;
        script.onerror = () => {
          loading.delete(source);
          reject(new Error(`${source} cannot be loaded: is the folder of the report whole?`));
        };
        document.head.append(script);
      });
      loading.set(source, loaded);
    }
    return loading.get(source);
  }

  // Returns the measures of all latents of a run as typed arrays; undefined ones are NaN, in dominant_class -1.
  async function columns(run) {
    if (!columnsOf.has(run.key)) {
      await load(`data/${run.key}/columns.js`);
      const arrays = {};
      for (const [name, values] of Object.entries(DATA.columns[run.key])) {
        arrays[name] =
          name === "dominant_class"
            ? Int32Array.from(values, (value) => value ?? -1)
            : Float64Array.from(values, (value) => value ?? NaN);
      }
      delete DATA.columns[run.key];
      columnsOf.set(run.key, arrays);
    }
    return columnsOf.get(run.key);
  }

  async function latent(run, number) {
    const block = Math.floor(number / run.block);
    await load(`data/${run.key}/latents-${four(block)}.js`);
    return DATA.blocks[`${run.key}/${block}`][number % run.block];
  }

  // Returns a map from each item to its id, labels and row.
  async function items(storeKey, numbers) {
    const perFile = DATA.stores[storeKey].per_sheet;
    const parts = [...new Set(numbers.map((number) => Math.floor(number / perFile)))];
    await Promise.all(parts.map((part) => load(`data/${storeKey}/items-${four(part)}.js`)));
    return new Map(
      numbers.map((number) => {
        const [id, labels, row] = DATA.items[`${storeKey}/${Math.floor(number / perFile)}`][number % perFile];
        return [number, { id, labels, row }];
      }),
    );
  }

  function sheet(storeKey, item) {
    const store = DATA.stores[storeKey];
    const cell = item % store.per_sheet;
    return {
      source: `images/${storeKey}/sheet-${four(Math.floor(item / store.per_sheet))}.${store.sheet_suffix ?? "webp"}`,
      columns: store.sheet_columns,
      column: cell % store.sheet_columns,
      line: Math.floor(cell / store.sheet_columns),
    };
  }

  const missing = new Map(); // store key -> set of the items without an image

  function isMissing(storeKey, item) {
    if (!missing.has(storeKey)) missing.set(storeKey, new Set(DATA.stores[storeKey].missing));
    return missing.get(storeKey).has(item);
  }

  function className(storeKey, number) {
    return DATA.stores[storeKey].class_names?.[number] ?? `class ${number}`;
  }

  const grouped = new Intl.NumberFormat("en-US");

  // Formats a number; a dash where it is undefined.
  function figure(value, digits) {
    if (value === null || value === undefined || Number.isNaN(value)) return DASH;
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", MINUS);
  }

  function percent(value) {
    if (Number.isNaN(value)) return DASH;
    const share = 100 * value;
    return `${share >= 9.95 || share === 0 ? share.toFixed(0) : share.toPrecision(2)} %`;
  }

  Latents.data = {
    runs: DATA.runs ?? [],
    stores: DATA.stores ?? {},
    edges: DATA.histogram_edges ?? [],
    terms: DATA.terms ?? {},
    DASH,
    FEW_ROWS,
    columns,
    latent,
    items,
    sheet,
    isMissing,
    className,
    figure,
    percent,
    count: (number) => grouped.format(number),
  };
})();
