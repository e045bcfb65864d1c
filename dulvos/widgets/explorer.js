// The explorer of notebook 05: point at a cell of a clip and see where else its features are found.
//
// explorer.py sends the clip and the features once; all else is computed here. For tests and scripts, the
// widget's element has a property `dulvos` with
//   state()     the fields (see FIELDS), `ready` (all is drawn), `playing`, `ms` (time of the last drawing)
//   values(i)   Float32Array (T·h·w) drawn for encoder i: cosines, shares, or the dominant anchors' shares
//   set({...})  changes fields

// WebAssembly of d(key, n, c, query, out): int32 dot products of n vectors of c int8 with one of c int16, 16
// numbers at a time, by v128.load8x8_s and i32x4.dot_i16x8_s. It is 50 times as fast as a JavaScript loop.
const MODULE = "AGFzbQEAAAABCQFgBX9/f39/AAIIAQFtAW0CAAEDAgEABwUBAWQAAAqHAQGEAQICfwF7A0BBAP0RIQcgAyEFIAAgAm" +
  "ohBgNAIAcgAP0BAAAgBf0AAAD9ugH9rgEgAP0BAAggBf0AABD9ugH9rgEhByAFQSBqIQUgAEEQaiIAIAZJDQALIAQg" +
  "B/0bACAH/RsBaiAH/RsCaiAH/RsDajYCACAEQQRqIQQgAUEBayIBDQALCw==";
const simd = new WebAssembly.Module(Uint8Array.from(atob(MODULE), (letter) => letter.charCodeAt(0)));

/** Features of an encoder's layer, packed by `explorer.pack`; cells are ordered by frame, row, column. */
export class Features {
  constructor(head, codes, bias) {
    Object.assign(this, head, {bias}); // see `Explorer.packed`
    const c = this.channels, n = bias.length, at = n * c, end = at + 2 * c;
    const memory = new WebAssembly.Memory({initial: Math.ceil((end + 4 * n) / 65536)});
    this.codes = new Int8Array(memory.buffer, 0, at);
    this.query = new Int16Array(memory.buffer, at, c);
    this.products = new Int32Array(memory.buffer, end, n);
    this.codes.set(codes);
    [this.height, this.width] = this.cells;
    this.area = this.height * this.width;
    this.own = this.frames * this.area; // cells of the clip itself
    const {d} = new WebAssembly.Instance(simd, {m: {m: memory}}).exports;
    this.multiply = () => d(0, this.own, c, at, end);
  }

  /** Cosines of a cell with all cells of the clip: Float32Array (T·h·w). */
  cosines(cell) {
    const {own, channels, bias, scale, products} = this, values = new Float32Array(own), here = bias[cell];
    this.query.set(this.codes.subarray(cell * channels, (cell + 1) * channels));
    this.multiply();
    for (let i = 0; i < own; i++) values[i] = here + bias[i] + scale * products[i];
    if (cell < own) values[cell] = 1;
    return values;
  }

  /** The N² anchors of the clip's first frame, as cells, and those of the other clips if all compete. */
  anchors(n, all) {
    const found = grid(this.height, this.width, n);
    let start = this.own;
    for (const [height, width] of all ? this.others : []) {
      found.push(...grid(height, width, n).map((cell) => start + cell));
      start += height * width;
    }
    return found;
  }

  /** The cell of a frame nearest to a point (y, x) in pixels; the first pixel reaches from 0 to 1. */
  cellAt(y, x) {
    const [row, column] = [y, x].map((pixel, i) =>
      clamp((pixel - 0.5 - this.offset[i]) / this.stride[i], this.cells[i] - 1));
    return row * this.width + column;
  }

  /** The pixel (y, x) in the middle of a frame's cell. */
  pixelOf(cell) {
    const place = [Math.floor(cell / this.width), cell % this.width];
    return place.map((at, i) => this.offset[i] + this.stride[i] * at + 0.5);
  }

  /** Number of a cell's anchor: in the first frame the nearest one, elsewhere the dominant one. */
  anchorOf(cell, n, label) {
    if (cell >= this.area) return label[cell];
    const [y, x] = this.pixelOf(cell), places = this.anchors(n, false).map((anchor) => this.pixelOf(anchor));
    const apart = places.map(([ay, ax]) => (ay - y) ** 2 + (ax - x) ** 2);
    return apart.indexOf(Math.min(...apart));
  }
}

const clamp = (value, most) => Math.min(most, Math.max(0, Math.round(value)));

/** The middles of n × n blocks of a map, row by row, as `dulvos.correspondence.anchor_grid`. */
function grid(height, width, n) {
  const middles = (side) => Array.from({length: n}, (_, i) => Math.floor(((2 * i + 1) * side) / (2 * n)));
  return middles(height).flatMap((y) => middles(width).map((x) => y * width + x));
}

/**
 * How anchors q compete for each cell k: `sum` of exp((k·q − 1) / τ) (Eq. 1's denominator times a constant),
 * `label` of the dominant one (Eq. 2), its cosine `best`; `own` has sum and label among this clip's n² alone.
 */
async function compete(features, n, all, tau, stop) {
  const cells = features.own, anchors = features.anchors(n, all), label = new Int32Array(cells);
  const sum = new Float64Array(cells), best = new Float32Array(cells).fill(-Infinity);
  let own = null;
  for (let a = 0; a < anchors.length; a++) {
    const cosine = features.cosines(anchors[a]);
    for (let i = 0; i < cells; i++) {
      sum[i] += Math.exp((cosine[i] - 1) / tau);
      if (cosine[i] > best[i]) { best[i] = cosine[i]; label[i] = a; }
    }
    if (a === n * n - 1) own = {sum: sum.slice(), label: label.slice()};
    if (await stop()) return null;
  }
  return {sum, best, label, own};
}

/** Shares of an anchor in all cells (Eq. 1), from its cosines and the competition's sum. */
const shares = (cosines, sum, tau) => cosines.map((cosine, i) => Math.exp((cosine - 1) / tau) / sum[i]);

/** The k greatest values of each frame, the greatest first, as cells of the frame. */
export function bestMatches(values, area, k) {
  return Array.from({length: values.length / area}, (_, t) => {
    const found = [], frame = values.subarray(t * area, (t + 1) * area);
    for (let i = 0; i < area; i++) {
      if (found.length === k && frame[i] <= frame[found[k - 1]]) continue;
      let at = found.length;
      while (at > 0 && frame[i] > frame[found[at - 1]]) at--;
      found.splice(at, 0, i);
      if (found.length > k) found.pop();
    }
    return found;
  });
}

/** The ends of a scale of cosines: their median (to 0.001), and the best match outside of `frame`. */
export function stretch(values, best, area, frame) {
  const counts = new Uint32Array(2001);
  for (const value of values) counts[Math.max(0, Math.min(2000, 1000 * value + 1000.5)) | 0]++;
  let low = 0;
  for (let below = 0; (below += counts[low]) < values.length / 2;) low++;
  const others = best.map(([cell], t) => (t === frame && best.length > 1 ? -1 : values[t * area + cell]));
  return {low: low / 1000 - 1, high: Math.max(low / 1000 - 0.999, ...others)};
}

const FIELDS = ["frame", "y", "x", "time", "layer", "tau", "n", "show", "clips", "pinned"];
const TAUS = [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5, 1];
const TEXTS = {affinity: "similarity to the cell", share: "share of its anchor", dominant: "dominant anchors",
  own: "this clip", all: "all clips"};
const ORANGE = "#e69f00", SKY = "#56b4e9", STRAY = 0x464646; // Okabe and Ito's; grey for other clips' anchors
const KEYS = {ArrowLeft: ["x", -1], ArrowRight: ["x", 1], ArrowUp: ["y", -1], ArrowDown: ["y", 1],
  PageUp: ["frame", -1], PageDown: ["frame", 1], ",": ["time", -1], ".": ["time", 1], Enter: ["pinned", 1],
  s: ["show", 1], l: ["layer", 1], c: ["clips", 1], "-": ["n", -1], "+": ["n", 1], "[": ["tau", -1],
  "]": ["tau", 1], " ": ["playing"]};
const HELP = "Keys, after a click: arrows move the cell, page up and down its frame, Enter pins or frees " +
  "it · comma and full stop change the time, space plays · S what is shown, L layer, C clips, + − N, [ ] τ";

const css = (abgr) => `rgb(${abgr & 255} ${(abgr >> 8) & 255} ${(abgr >> 16) & 255})`;
const frameOf = ({shows}, {frame, time}) => ({query: frame, time})[shows] ?? shows;
const same = (one, other) => ["frame", "y", "x"].every((name) => one[name] === other[name]);
const mean = (list, read = (x) => x) => list.reduce((sum, x, i) => sum + read(x, i), 0) / list.length;
const percent = (list, test) => `${mean(list, (x, i) => 100 * test(x, i)).toFixed(1)} %`;
const node = (name, attributes, ...children) => {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
};

class Page {
  constructor(model, el) {
    Object.assign(this, {model, layers: {}, pictures: new Map(), asked: new Set()});
    this.note = node("div", {className: "small", role: "status"}, "Waiting for the features …");
    this.root = node("div", {className: "dulvos-explorer", tabIndex: 0}, this.note);
    this.root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's, while this has the keyboard
    el.replaceChildren(this.root);
    el.dulvos = {set: (changes) => this.set(changes), values: (i) => this.maps[i].values, state: () =>
      ({...this.view, ready: Boolean(this.drawn), playing: Boolean(this.player), ms: this.ms})};
    const follow = (name) => [`change:${name}`, () => this.set({[name]: model.get(name)}, false)];
    const listeners = [["msg:custom", (head, buffers) => this.message(head, buffers)], ...FIELDS.map(follow)];
    for (const [event, act] of listeners) model.on(event, act);
    this.close = () => {
      for (const [event, act] of listeners) model.off(event, act);
      this.watcher?.disconnect();
      clearInterval(this.player);
    };
    this.ask("clip");
    this.set(Object.fromEntries(FIELDS.map((name) => [name, model.get(name)])), false);
  }

  ask(want) {
    if (!this.asked.has(want)) this.model.send({want});
    this.asked.add(want);
  }

  async message(head, buffers = []) {
    const bytes = buffers.map((at) => new Uint8Array(at.buffer, at.byteOffset, at.byteLength).slice());
    this.failure = head.text; // what went wrong in the kernel
    if (head.kind === "features") {
      const of = (this.layers[head.layer] ??= {}), [codes, bias] = bytes.map(({buffer}) => buffer);
      of[head.encoder] ??= new Features(head, new Int8Array(codes), new Float32Array(bias));
    } else if (head.kind === "clip" && !this.clip) {
      const [viridis, anchors, ...jpegs] = bytes, grids = new Uint32Array(anchors.buffer);
      const start = (n) => ((n - 1) * n * (2 * n - 1)) / 6; // Σ i², i < n
      this.colours = new Uint32Array(viridis.buffer);
      this.anchorColours = Array.from({length: 17}, (_, n) => grids.subarray(start(n), start(n + 1)));
      this.frames = await Promise.all(jpegs.map((jpeg) => createImageBitmap(new Blob([jpeg]))));
      if (this.clip) return; // another view asked, too, and its answer came meanwhile
      this.clip = head;
      this.build();
    }
    this.set({}, false);
  }

  /** Each encoder's features of the layer that is shown, or null until all have arrived. */
  get features() {
    const found = this.clip?.encoders.map((name) => this.layers[this.view.layer]?.[name]);
    return found?.every(Boolean) ? found : null;
  }

  build() {
    const {encoders, layers, numbers, size: [height, width]} = this.clip, count = numbers.length;
    this.root.style = `--aspect: ${width / height}; --count: ${count}`;
    Object.assign(this, {lists: {pinned: [false, true]}, controls: {}});
    const choose = (field, label, list) => {
      const options = list.map((value) => node("option", {value}, TEXTS[value] ?? value));
      const input = node("select", {}, ...options);
      input.onchange = () => this.set({[field]: list[input.selectedIndex]});
      [this.controls[field], this.lists[field]] = [input, list];
      return node("label", {}, label, input);
    };
    const layer = choose("layer", "layer", layers);
    this.contenders = [choose("clips", "anchors of", ["own", "all"]),
      choose("n", "grid N", Array.from({length: 16}, (_, i) => i + 1)), choose("tau", "τ", [])];
    this.slider = node("input", {type: "range", min: 0, max: count - 1, ariaLabel: "time",
      oninput: () => this.set({time: Number(this.slider.value)})});
    this.button = node("button", {type: "button", onclick: () => this.play()}, "▶ play");
    const tile = (shows, encoder, text = "") => { // shows "query", "time" or a frame of that number
      const canvas = node("canvas"), caption = node("div", {className: "small"}, text);
      const whole = node("div", {}, caption, canvas), large = typeof shows === "string";
      return (canvas.tile = {shows, encoder, large, canvas, caption, whole});
    };
    this.large = [tile("query", -1), ...encoders.map((_, i) => tile("time", i))];
    const text = (t) => `${numbers[t]}${t ? "" : ", reference"}`;
    this.strips = encoders.map((_, i) => numbers.map((_, t) => tile(t, i, text(t))));
    const strip = count < 8 ? "strip few" : "strip";
    const all = (className, tiles) => node("div", {className}, ...tiles.map(({whole}) => whole));
    this.root.append(
      node("div", {className: "bar"}, choose("show", "show", ["affinity", "share", "dominant"]),
        ...(layers.length > 1 ? [layer] : []), ...this.contenders),
      all("large", this.large),
      node("div", {className: "bar"}, this.button, this.slider),
      ...encoders.flatMap((name, i) => [node("div", {}, name, ", all frames"), all(strip, this.strips[i])]),
      this.note, node("div", {className: "small"}, HELP));
    const listen = (type) => this.root.addEventListener(type, (event) => this[type](event));
    ["pointermove", "click", "keydown"].forEach(listen);
    this.watcher = new ResizeObserver(() => { this.pictures.clear(); this.schedule(); });
    this.watcher.observe(this.root);
  }

  /** Change fields, within their ranges; the kernel is told after 200 ms without a change. */
  set(changes, tell = true) {
    const view = this.view = {...this.view, ...changes}, {features} = this;
    this.ask(view.layer);
    if (features) {
      const [{frames, height, width}] = features, counts = {frame: frames, time: frames, y: height, x: width};
      for (const name of Object.keys(counts)) view[name] = clamp(view[name], counts[name] - 1);
      const sides = features.flatMap((one) => [one.cells, ...one.others].flat());
      view.n = Math.max(1, clamp(view.n, Math.min(16, ...sides)));
    }
    if (tell) clearTimeout(this.timer);
    if (tell) this.timer = setTimeout(() => {
      for (const [name, value] of Object.entries(this.view)) this.model.set(name, value);
      this.model.save_changes();
    }, 200);
    this.schedule();
  }

  schedule() {
    this.drawn = false;
    this.request ??= requestAnimationFrame(() => { this.request = null; if (this.clip) this.draw(); });
  }

  /** The first encoder's cell under the mouse or finger of an event, or null. */
  cellOf({target: {tile, clientWidth, clientHeight}, offsetX, offsetY}) {
    const first = tile && this.features?.[0], [height, width] = this.clip.size;
    if (!first) return null;
    const cell = first.cellAt((offsetY / clientHeight) * height, (offsetX / clientWidth) * width);
    return {frame: frameOf(tile, this.view), y: Math.floor(cell / first.width), x: cell % first.width};
  }

  pointermove(event) {
    const cell = this.cellOf(event);
    if (cell && !this.view.pinned && !same(cell, this.view)) this.set(cell);
  }

  click(event) {
    const cell = this.cellOf(event), {view} = this;
    if (!cell) return;
    this.root.focus({preventScroll: true});
    const again = view.pinned && same(cell, view); // releases it; a finger does not hover, so it never pins
    this.set({...cell, pinned: !again && event.pointerType !== "touch"});
  }

  keydown(event) {
    const key = event.key.length > 1 ? event.key : event.key.toLowerCase(), {target} = event;
    // keys that a control uses itself while it has the keyboard
    const used = {INPUT: /^(Arrow|Page)/, SELECT: /^(Arrow|Page|Enter|\w$| )/, BUTTON: /^(Enter| )/};
    if (!KEYS[key] || used[target.tagName]?.test(key) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const [field, by] = KEYS[key], list = this.lists[field], value = this.view[field];
    const next = list ? list[(list.indexOf(value) + by + list.length) % list.length] : value + by;
    if (field === "playing") this.play(); else this.set({[field]: next});
  }

  play() {
    clearInterval(this.player);
    const step = () => this.set({time: (this.view.time + 1) % this.frames.length});
    this.player = this.player ? null : setInterval(step, 200);
    this.button.textContent = this.player ? "❚❚ pause" : "▶ play";
  }

  /** Compute `contest`: each encoder's competition of anchors, and what to say about it. */
  async compete(key) {
    const {features, clip: {encoders}} = this, {n, tau, clips} = this.view, each = [], notes = [];
    this.running = key;
    let since = performance.now();
    const stop = async () => {
      const late = performance.now() - since > 12; // then the page gets a turn
      if (late) since = await new Promise((go) => setTimeout(() => go(performance.now())));
      return this.running !== key; // the user has asked for another one
    };
    for (const [i, one] of features.entries()) {
      const found = await compete(one, n, clips === "all", tau, stop);
      if (!found) return;
      const values = shares(found.best, found.sum, tau);
      const kept = percent(found.label, (label) => label < n * n);
      each.push({...found, values});
      notes.push(`${encoders[i]}: the dominant anchor's share is ${mean(values).toFixed(2)} on average` +
        (clips === "all" ? `, ${kept} of the cells go to an anchor of this clip (grey: the others)` : ""));
    }
    const [a, b] = each.map(({own}) => own.label), agree = (label, i) => label === b[i];
    if (a.length === b?.length)
      notes.push(`both choose the same anchor of this clip in ${percent(a, agree)} of the cells`);
    this.contest = {key, each, notes};
    this.schedule();
  }

  /** What is drawn for an encoder: values, the ends of their scale, each frame's best cells, labels. */
  map(one, cell, contest, anchor) {
    const {show, n, tau, clips, frame} = this.view, {area} = one;
    if (show === "dominant") return {...contest, labels: contest.label, low: 0, high: 1, best: []};
    const cosines = one.cosines(show === "affinity" ? cell : one.anchors(n, false)[anchor]);
    const values = show === "affinity" ? cosines : shares(cosines, contest.sum, tau);
    const best = bestMatches(values, area, 10);
    if (show === "affinity") return {values, best, ...stretch(values, best, area, frame)};
    // the scale is that of this clip's competition, so that one sees what the other clips take away
    const alone = clips === "own" ? values : shares(cosines, contest.own.sum, tau);
    return {values, best, low: 0, high: alone.reduce((a, b) => Math.max(a, b))};
  }

  /** Colour a map on a canvas with one pixel a cell, frame below frame. */
  heat({values, labels, low, high}, one) {
    const colours = labels ? this.anchorColours[this.view.n] : this.colours;
    const steps = 255 / Math.max(high - low, 1e-6);
    one.canvas ??= node("canvas", {width: one.width, height: one.height * one.frames});
    one.image ??= new ImageData(one.canvas.width, one.canvas.height);
    const pixels = new Uint32Array(one.image.data.buffer);
    for (let i = 0; i < values.length; i++) {
      pixels[i] = labels ? (colours[labels[i]] ?? STRAY) | ((50 + 190 * values[i]) << 24)
        : colours[Math.min(255, Math.max(0, (values[i] - low) * steps + 0.5)) | 0];
    }
    one.canvas.getContext("2d").putImageData(one.image, 0, 0);
  }

  draw() {
    const {view, features} = this, started = performance.now(), plain = view.show === "affinity";
    if (!this.lists.tau.includes(view.tau)) {
      this.lists.tau.splice(0, Infinity, ...[...new Set([...TAUS, view.tau])].sort((a, b) => a - b));
      this.controls.tau.replaceChildren(...this.lists.tau.map((value) => node("option", {value}, value)));
    }
    for (const [field, input] of Object.entries(this.controls)) input.value = view[field];
    for (const label of this.contenders) label.classList.toggle("off", plain);
    this.slider.value = view.time;
    const key = plain ? "" : [view.layer, view.n, view.tau, view.clips].join();
    if (features && !plain && this.running !== key) this.compete(key);
    const contest = plain ? {key, each: [], notes: []} : this.contest;
    if (!features || contest?.key !== key) {
      this.note.textContent = this.failure ?? `Computing the ${features ? "anchors' shares" : "features"} …`;
      return;
    }
    const [first] = features, here = first.pixelOf(view.y * first.width + view.x), {each, notes} = contest;
    const cells = features.map((one) => view.frame * one.area + one.cellAt(...here));
    const anchor = plain ? null : first.anchorOf(cells[0], view.n, each[0].own.label);
    this.maps = features.map((one, i) => this.map(one, cells[i], each[i], anchor));
    this.maps.forEach((map, i) => this.heat(map, features[i]));
    for (const tile of [...this.large, ...this.strips.flat()]) this.paint(tile, here, anchor);
    this.write(notes, anchor);
    Object.assign(this, {ms: performance.now() - started, drawn: true});
  }

  /** A frame at a size, in colour or in dim grey. */
  picture(frame, width, height, grey) {
    const key = [frame, width, height, grey].join();
    if (!this.pictures.has(key)) {
      const canvas = node("canvas", {width, height}), context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(this.frames[frame], 0, 0, width, height);
      for (const [operation, colour] of grey ? [["saturation", "#000"], ["source-over", "#0004"]] : []) {
        Object.assign(context, {globalCompositeOperation: operation, fillStyle: colour});
        context.fillRect(0, 0, width, height);
      }
      this.pictures.set(key, canvas);
    }
    return this.pictures.get(key);
  }

  paint({canvas, encoder, large, shows, whole}, here, anchor) {
    const {view, clip} = this, frame = frameOf({shows}, view), one = this.features[Math.max(0, encoder)];
    const ratio = window.devicePixelRatio, {stride, offset, cells: [h, w]} = one;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    if (!width || !height) return;
    const context = canvas.getContext("2d"), sy = height / clip.size[0], sx = width / clip.size[1];
    context.drawImage(this.picture(frame, width, height, encoder >= 0), 0, 0);
    if (encoder >= 0) {
      const [top, left] = [0, 1].map((i) => offset[i] + 0.5 - stride[i] / 2);
      context.imageSmoothingEnabled = false;
      context.drawImage(one.canvas, 0, frame * h, w, h,
        left * sx, top * sy, w * stride[1] * sx, h * stride[0] * sy);
    }
    const mark = (colour, wide, places, draw) => { // on a dark rim, so that it shows on any ground
      const path = new Path2D(places.map(([y, x]) => draw(x * sx, y * sy)).join(""));
      for (const [strokeStyle, lineWidth] of [["#000c", wide + 1.6], [colour, wide]]) {
        Object.assign(context, {strokeStyle, lineWidth: lineWidth * ratio});
        context.stroke(path);
      }
    };
    const r = Math.max(2.5 * ratio, 0.45 * stride[1] * sx), arm = (large ? 9 : 5) * ratio;
    const ring = (x, y) => `M${x + r} ${y}a${r} ${r} 0 1 0 ${-2 * r} 0a${r} ${r} 0 1 0 ${2 * r} 0`;
    const box = (half) => (x, y) => `M${x - half} ${y - half}h${2 * half}v${2 * half}h${-2 * half}z`;
    const cross = (x, y) => `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`;
    const best = (this.maps[encoder]?.best[frame] ?? []).map((cell) => one.pixelOf(cell));
    mark("white", large ? 1.2 : 0.7, best.slice(1), ring);
    mark(ORANGE, large ? 1.6 : 1.2, best.slice(0, 1), ring);
    if (anchor !== null && frame === 0) {
      const places = one.anchors(view.n, false).map((cell) => one.pixelOf(cell));
      const dot = (place, i) => mark(css(this.anchorColours[view.n][i]), 2, [place], box(ratio));
      if (large) places.forEach(dot);
      mark(SKY, 1.5, [places[anchor]], box(1.4 * r));
    }
    if (frame === view.frame) mark(view.pinned ? ORANGE : "white", 1.8, [here], cross);
    whole.classList.toggle("now", shows === "time" || shows === view.time);
  }

  write(notes, anchor) {
    const {view, clip: {encoders, numbers}} = this, cosine = view.show === "affinity";
    const gradient = [0, 51, 102, 153, 204, 255].map((i) => css(this.colours[i])).join();
    const asked = cosine ? "" : ` · anchor ${anchor + 1} of ${view.n ** 2}`;
    const hint = view.pinned ? "pinned" : "click to pin";
    const ends = cosine ? ["median", "best in other frames"] : ["share", "greatest in this clip"];
    for (const {encoder, caption} of this.large) {
      const query = encoder < 0, {low, high} = this.maps[encoder] ?? {}, bar = node("i");
      bar.style.background = `linear-gradient(90deg, ${gradient})`;
      const legend = query ? [`row ${view.y}, column ${view.x}${asked} · ${hint}`]
        : view.show === "dominant" ? ["colour: the anchor's place, strength: its share"]
          : [`${ends[0]} ${low.toFixed(2)}`, bar, `${high.toFixed(2)} ${ends[1]}`];
      const name = node("b", {}, encoders[encoder] ?? "Point here");
      const number = `, frame ${numbers[query ? view.frame : view.time]}`;
      caption.replaceChildren(name, number, node("div", {}, ...legend));
    }
    const errors = this.features.map(({channels, error, encoder}) =>
      `${encoder}: ${channels} channels of 8 bits, 99 % of the cosines right to ±${error.toFixed(4)}`);
    this.note.textContent = [...notes, ...errors].join(" · ");
  }
}

const render = ({model, el}) => new Page(model, el).close;

/** Show what `Explorer.save_html` wrote, without a kernel; `text` is gzip in base64. */
export async function openSaved(el, text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer()), end = bytes.indexOf(10);
  const {view, messages} = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  let at = end + 1, listen = null;
  for (const one of messages) one.buffers = one.sizes.map((size) => bytes.subarray(at, (at += size)));
  const send = ({want}) => messages.filter(({head}) => (head.layer ?? head.kind) === want)
    .forEach(({head, buffers}) => setTimeout(() => listen(head, buffers)));
  const on = (event, act) => { if (event === "msg:custom") listen = act; };
  render({el, model: {send, on, get: (name) => view[name], set() {}, save_changes() {}, off() {}}});
}

export default {render};
