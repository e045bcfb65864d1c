// The painter in the browser: tools that draw on a mask, a timeline, messages to the kernel (see painter.py).
// A mask is a Uint8Array of width * height ids; a box is [left, top, right, bottom], the last two exclusive.

const limited = (value, least, most) => Math.min(most, Math.max(least, value));
/** The box around two boxes, each of which may be null. */
const join = (a, b) => !a || !b ? a ?? b
  : [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];

/** Paint the pixels whose centres lie within `radius` of a line through points [x, y]; returns their box. */
export function stroke(ids, width, height, points, radius, id) {
  let box = null;
  points.forEach(([bx, by], k) => {
    const [ax, ay] = points[Math.max(0, k - 1)], dx = bx - ax, dy = by - ay, square = dx * dx + dy * dy;
    const outside = (x, y) => {
      const along = square && limited(((x - ax) * dx + (y - ay) * dy) / square, 0, 1);
      return (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 > radius * radius;
    };
    const reach = (a, b, size) => [limited(Math.ceil(Math.min(a, b) - radius), 0, size),
      limited(Math.floor(Math.max(a, b) + radius) + 1, 0, size)];
    const [left, right] = reach(ax, bx, width), [top, bottom] = reach(ay, by, height);
    for (let y = top; y < bottom; y++) { // in each row, the pixels inside are one piece
      let first = left, last = right - 1;
      while (first < right && outside(first, y)) first++;
      while (last > first && outside(last, y)) last--;
      if (first < right) ids.fill(id, y * width + first, y * width + last + 1);
    }
    if (left < right && top < bottom) box = join(box, [left, top, right, bottom]);
  });
  return box;
}

/** Fill a polygon and its rim by the even-odd rule. */
export function polygon(ids, width, height, corners, id) {
  const edges = corners.map((corner, k) => [corner, corners[(k + 1) % corners.length]]);
  for (let y = 0; y < height; y++) {
    const xs = edges.filter(([a, b]) => (a[1] <= y) !== (b[1] <= y))
      .map(([a, b]) => a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0])).sort((a, b) => a - b);
    for (let k = 0; k < xs.length; k += 2) {
      const from = Math.max(0, Math.ceil(xs[k])), to = Math.min(width, Math.floor(xs[k + 1]) + 1);
      if (from < to) ids.fill(id, y * width + from, y * width + to);
    }
  }
  stroke(ids, width, height, [...corners, corners[0]], 0.5, id);
}

/** Fill the connected pixels that have the same id as pixel (x, y). */
export function fill(ids, width, height, x, y, id) {
  const waiting = x >= 0 && y >= 0 && x < width && y < height ? [y * width + x] : [], old = ids[waiting[0]];
  while (old !== id && waiting.length) {
    const i = waiting.pop(), px = i % width;
    if (ids[i] !== old) continue;
    ids[i] = id;
    if (px > 0) waiting.push(i - 1);
    if (px < width - 1) waiting.push(i + 1);
    if (i >= width) waiting.push(i - width);
    if (i + width < ids.length) waiting.push(i + width);
  }
}

const pipe = async (data, stream) =>
  new Uint8Array(await new Response(new Blob([data]).stream().pipeThrough(stream)).arrayBuffer());
const inflate = (data) => pipe(data, new DecompressionStream("deflate"));

const HTML = `<div><span class="tools"></span><span class="soft" title="Diameter of the brush: [ and ]">size
  <input class="size" type="range" max="1" step="any" aria-label="size"><output></output></span>
  <span class="objects"></span></div>
<div><span class="edit"></span><span class="view"></span><span class="files"></span></div><canvas></canvas>
<div><span class="play"></span><div class="time" title="▼ painted, ✕ an object ends"><div class="marks"></div>
  <input class="frame" type="range" aria-label="frame"><div class="bar"></div></div>
  <output class="where"></output><span class="run"></span></div>
<div class="soft" role="status"></div>`;
const TOOLS = ["Brush", "Polygon", "Eraser", "Fill", "Move"];
const make = (tag, fields) => Object.assign(document.createElement(tag), fields);
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function render({ model, el }) {
  const [height, width] = model.get("size"), length = model.get("length"), last = Math.max(1, length - 1);
  const rgb = (id) => model.get("colours")[(id + 6) % 7];
  const pixelOf = (id) => id && rgb(id).reduceRight((sum, part) => sum << 8 | part, 0x8C); // ImageData's RGBA
  const colours = Uint32Array.from({ length: 256 }, (_, id) => pixelOf(id));
  const everything = [0, 0, width, height], largest = Math.max(2, Math.min(width, height) / 2);
  const root = make("div", { className: "dulvos-painter", tabIndex: 0, innerHTML: HTML });
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys would add and delete cells
  el.append(root);
  const seek = (selector) => root.querySelector(selector), canvas = seek("canvas"), me = Math.random();
  const context = canvas.getContext("2d"), tinted = new OffscreenCanvas(width, height).getContext("2d");
  const frames = Array.from({ length }, () => ({})), painted = new Map(), pointers = new Map();
  const ends = frames.map((_, frame) => new Set(model.get("state").ended[frame])); // objects that end there
  let state = model.get("state"), t = 0, ids = new Uint8Array(width * height), bitmap = null, turn = 0;
  let tool = "Brush", object = 1, size = Math.ceil(largest / 10), cursor = null, corners = [];
  let view = { scale: 0, x: 0, y: 0 }, fit = 0; // the scale at which the whole picture fitted last
  let action, playing = null, follow = false, chips = "", typed = 0, number = 0; // number: digits typed
  let past = [], future = []; // edits: [frame, the mask before, an object that ended]
  let waiting = 0, awaited = false, stale = null, sending = Promise.resolve(), showing = Promise.resolve();

  // frames, masks and the kernel
  const send = (content, buffers) => model.send(content, undefined, buffers);
  const ask = (frame) => {
    if (!frames[frame].asked) { send({ kind: "frame", frame }); waiting++; }
    frames[frame].asked = true;
  };
  const show = (frame) => (showing = reveal(limited(frame, 0, length - 1)));
  async function reveal(frame) {
    ask(frame);
    const mine = ++turn, { picture, mask } = frames[frame];
    const found = mask ? await inflate(mask) : new Uint8Array(width * height);
    const image = picture && await createImageBitmap(picture), begun = action?.before;
    if (mine !== turn || (begun && frame !== t)) return image?.close(); // another frame is asked for or painted
    if (frame !== t) corners = [];
    bitmap?.close(); // below, `painted` is looked up last, because the user may have painted meanwhile
    [t, bitmap, ids] = [frame, image, begun ? ids : painted.get(frame)?.ids ?? found];
    colour(everything);
    refresh();
  }
  async function receive({ kind, frame, run, name, from }, [buffer]) {
    if (kind === "frame") {
      if (frames[frame].asked && !frames[frame].picture) waiting--; // otherwise another view asked for it
      Object.assign(frames[frame], { asked: true, picture: new Blob([buffer], { type: "image/jpeg" }) });
      const next = [...frames.keys()].map((k) => (frame + k) % length).find((k) => !frames[k].asked);
      if (!waiting && next !== undefined) ask(next);
      if (frame === t) show(t);
    } else if (kind === "load") {
      const loaded = await inflate(bytes(buffer));
      if (frame !== t) await show(frame);
      if (frame === t) change((mask) => mask.set(loaded));
    } else if (kind === "save") {
      const href = URL.createObjectURL(new Blob([bytes(buffer)], { type: "image/png" }));
      if (from === me) make("a", { href, download: name }).click(); // else another view asked
    } else if (from ? from !== me : !(painted.get(frame)?.run >= run)) { // another view's, or newer
      painted.delete(frame);
      frames[frame].mask = bytes(buffer);
      if (from) [past, future] = [past, future].map((edits) => edits.filter((edit) => edit[0] !== frame));
      if (!action && (follow || frame === t)) show(frame);
    }
  }
  function publish(before) { // to the kernel, which may know a newer mask: so it gets the difference
    const frame = t, masks = [before.slice(), ids.slice()];
    painted.set(frame, { ids, run: state.run });
    sending = sending.then(async () => {
      const packed = await Promise.all(masks.map((mask) => pipe(mask, new CompressionStream("deflate"))));
      send({ kind: "paint", view: me, frame, ended: [...ends[frame]] }, packed.map(({ buffer }) => buffer));
    });
    refresh();
  }

  // edits
  function commit(before, box = everything, ended = 0) {
    if (!ended && !before.some((id, k) => id !== ids[k])) return;
    past.push([t, before, ended]);
    future = [];
    if (past.length > 1 && past.length * ids.length > 2 ** 28) past.shift();
    colour(box);
    publish(before);
  }
  function change(edit, ended) {
    const before = ids;
    ids = ids.slice();
    edit(ids);
    commit(before, everything, ended);
  }
  async function step(from, to) { // undo: from the past to the future
    const last = from.at(-1), [frame, mask, ended] = last ?? [t];
    if (frame !== t) await show(frame);
    if (!mask || frame !== t || from.at(-1) !== last) return; // none, or another frame was asked for
    to.push([from.pop()[0], ids, ended]);
    ids = mask;
    if (ended) ends[t][to === future ? "delete" : "add"](ended);
    colour(everything);
    publish(to.at(-1)[1]);
  }
  function end() { // also if no pixel of the object is left here, but once, and of an object that exists
    const known = state.objects.includes(object) || [...painted.values()].some((a) => a.ids.includes(object));
    if (!ids.includes(object) && (ends[t].has(object) || !known)) return;
    ends[t].add(object);
    change((mask) => mask.set(mask.map((id) => id === object ? 0 : id)), object);
  }
  function close() {
    if (corners.length > 2) change((mask) => polygon(mask, width, height, corners, object));
    take(tool);
  }
  function dab(points) {
    if (size === 1) points = points.map((point) => point.map(Math.round)); // so that it hits a pixel's centre
    const box = stroke(ids, width, height, [action.last, ...points], size / 2, action.id);
    [action.box, action.last] = [join(action.box, box), points.at(-1)];
    colour(box);
  }

  // drawing
  const colour = (box) => { stale = join(stale, box); draw(); };
  const draw = () => { if (!awaited) requestAnimationFrame(drawNow); awaited = true; };
  function colourNow([left, top, right, bottom]) {
    const image = new ImageData(right - left, bottom - top), pixels = new Uint32Array(image.data.buffer);
    for (let y = top, k = 0; y < bottom; y++) {
      for (let x = left; x < right; x++) pixels[k++] = colours[ids[y * width + x]];
    }
    tinted.putImageData(image, left, top);
  }
  const inView = ([x, y]) => [view.x + (x + 0.5) * view.scale, view.y + (y + 0.5) * view.scale];
  function drawNow() {
    const ratio = devicePixelRatio, zoomed = ratio * view.scale, path = new Path2D();
    if (stale) colourNow(stale);
    [awaited, stale] = [false, null];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(zoomed, 0, 0, zoomed, ratio * view.x, ratio * view.y);
    context.imageSmoothingEnabled = zoomed < 2;
    if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
    context.drawImage(tinted.canvas, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const line = corners.length && cursor ? [...corners, cursor] : corners;
    line.map(inView).forEach((place, k) => path[k ? "lineTo" : "moveTo"](...place));
    for (const [x, y] of corners.map(inView)) path.rect(x - 3, y - 3, 6, 6);
    if (cursor && (tool === "Brush" || tool === "Eraser")) {
      const [x, y] = inView(cursor), radius = Math.max(1.5, size / 2 * view.scale);
      path.moveTo(x + radius, y);
      path.arc(x, y, radius, 0, 7);
    }
    for (const style of [{ lineWidth: 3, strokeStyle: "#000a" }, { lineWidth: 1.2, strokeStyle: "#fff" }]) {
      Object.assign(context, style).stroke(path);
    }
  }
  function refresh() { // buttons, words and the timeline
    const { objects, running, done, found, given, ended, message } = state, seen = new Uint8Array(256);
    for (let i = 0; i < ids.length; i++) seen[ids[i]] = 1;
    for (const id of [object, ...objects]) seen[id] = 1;
    const held = [...seen.keys()].filter((id) => id && seen[id]), next = held.at(-1) + 1;
    const wanted = [object, ...held].join();
    if (chips !== wanted) { // only then, because a button that is replaced may lose a click
      chips = wanted;
      seek(".objects").replaceChildren("object ");
      for (const id of held) {
        const chip = button("objects", id, `Object ${id}: type its number`, () => choose(id));
        chip.prepend(make("i", { style: `background: rgb(${rgb(id)})` }));
        chip.ariaPressed = id === object;
      }
      button("objects", "+", `A new object: ${next}`, () => choose(next)).disabled = next > 254;
    }
    for (const name of TOOLS) buttons[name].ariaPressed = name === tool;
    canvas.style.cursor = tool === "Move" ? "grab" : "crosshair";
    [buttons.Undo.disabled, buttons.Redo.disabled] = [!past.length, !future.length];
    buttons.Run.disabled = !objects.length || (!running && done === length);
    buttons.Run.textContent = running ? "■ Stop" : done === length ? "Done"
      : done ? `Go on from frame ${done}` : "Find masks";
    buttons.Play.textContent = playing ? "❚❚" : "▶";
    [seek(".size").value, seek("output").value] = [Math.log(size) / Math.log(largest), `${size} px`];
    seek("[role=status]").textContent = message || (running ? `Finding masks: ${done} of ${length} frames.`
      : tool === "Polygon" ? "Click corner after corner, and the first one again at the end."
        : objects.length ? "" : "Paint objects, each with its own number, then find their masks.");
    const part = (frame) => `${100 * limited((frame - 0.5) / last, 0, 1)}%`;
    const mark = (sign) => (frame) => `<b style="--at: ${frame / last}">${sign}</b>`;
    seek(".bar").style = `--done: ${part(done)}; --found: ${part(found)}`;
    seek(".marks").innerHTML = [...given.map(mark("▼")), ...Object.keys(ended).map(mark("✕"))].join("");
    Object.assign(seek(".frame"), { min: 0, max: length - 1, value: t });
    seek(".where").value = `frame ${t} / ${length - 1}`;
  }

  // what the user does
  const choose = (id) => { object = limited(id, 1, 254); refresh(); };
  const resize = (next) => { size = Math.round(limited(next, 1, largest)); refresh(); draw(); };
  const go = (frame) => { [follow, playing] = [false, null]; return show(frame); };
  const take = (name) => { [tool, corners, typed] = [name, [], 0]; refresh(); draw(); };
  const type = (digit) => { // digits that follow each other quickly make one number
    number = performance.now() - typed < 700 && number < 26 ? 10 * number + digit : digit;
    choose(number);
    typed = performance.now();
  };
  async function play() {
    const mine = playing ? null : {}; // so that a loop that was stopped does not go on beside a new one
    [follow, playing] = [false, mine];
    if (mine && t === length - 1) await show(0);
    while (mine && mine === playing && root.isConnected && t < length - 1) {
      const start = performance.now();
      await show(t + 1);
      await new Promise((resume) => setTimeout(resume, start + 1000 / model.get("fps") - performance.now()));
    }
    if (mine === playing) playing = null;
    refresh();
  }
  const later = (content) => (sending = sending.then(() => send(content))); // after all strokes are sent
  const save = () => later({ kind: "save", frame: t, view: me });
  const run = (kind = state.running ? "stop" : "run") => { follow = kind === "run"; later({ kind }); };
  function load() {
    const input = make("input", { type: "file", accept: "image/png" }), frame = t;
    input.onchange = async ({ target: { files: [file] } }) =>
      send({ kind: "load", frame, name: file.name }, [await file.arrayBuffer()]);
    input.click();
  }
  function button(group, label, title, act) {
    const made = make("button", { textContent: label, title });
    made.onclick = () => { root.focus({ preventScroll: true }); act(); };
    seek(`.${group}`).append(made);
    return made;
  }
  const commands = [ // key, what it does, group and label of its button
    ...TOOLS.map((name) => [name[0].toLowerCase(), () => take(name), "tools", name]),
    ...[..."0123456789"].map((digit) => [digit, () => type(+digit)]),
    ["Ctrl+z", () => step(past, future), "edit", "Undo"],
    ["Ctrl+y", () => step(future, past), "edit", "Redo"], ["Delete", end, "edit", "Gone from here on"],
    ["-", () => zoom(1 / 1.5), "view", "Zoom −"], ["+", () => zoom(1.5), "view", "Zoom +"],
    ["w", () => zoom(0), "view", "Whole picture"],
    ["o", load, "files", "Load PNG"], ["s", save, "files", "Save PNG"], [" ", play, "play", "Play"],
    ["r", run, "run", "Run"], ["[", () => resize(Math.min(size - 1, size / 1.25))],
    ["]", () => resize(Math.max(size + 1, size * 1.25))], ["ArrowLeft", () => go(t - 1)],
    ["ArrowRight", () => go(t + 1)], ["Enter", close], ["Escape", () => take(tool)],
    ["Ctrl+Shift+z", () => step(future, past)], ["=", () => zoom(1.5)]];
  const buttons = {};
  for (const [key, act, group, label] of commands.filter((command) => command.length > 2)) {
    buttons[label] = button(group, label, `${label} (key ${key === " " ? "Space" : key.toUpperCase()})`, act);
  }
  root.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const name = event.ctrlKey || event.metaKey ? `Ctrl+${event.shiftKey ? "Shift+" : ""}${key}` : key;
    const act = commands.find((command) => command[0] === name)?.[1];
    const used = { INPUT: /^Arrow/, BUTTON: /^(Enter| )$/ }[event.target.tagName]?.test(key);
    if (!act || used || event.altKey || (key === "Enter" && !corners.length)) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });
  seek(".size").oninput = ({ target }) => resize(largest ** target.value);
  seek(".frame").oninput = ({ target }) => go(+target.value);

  // the view and the pointer: mouse, touch or pen
  const room = () => [canvas.clientWidth, canvas.clientHeight];
  const whole = () => Math.min(room()[0] / width, room()[1] / height);
  function zoom(factor, [x, y] = room().map((side) => side / 2), to = [x, y], from = view) {
    const scale = limited(from.scale * factor, whole(), Math.max(40, whole())), ratio = scale / from.scale;
    const keep = (at, span, side) => span <= side ? (side - span) / 2 : limited(at, side - span, 0);
    view = { scale, x: keep(to[0] - (x - from.x) * ratio, width * scale, room()[0]),
      y: keep(to[1] - (y - from.y) * ratio, height * scale, room()[1]) };
    draw();
    return ratio !== 1;
  }
  function layout() {
    const fitted = view.scale <= 1.001 * fit, highest = Math.max(240, 0.7 * innerHeight);
    canvas.style.height = `${Math.min(root.clientWidth * height / width, highest)}px`;
    [canvas.width, canvas.height] = room().map((side) => side * devicePixelRatio);
    fit = whole();
    zoom(fitted ? 0 : 1, [0, 0], [0, 0], view.scale ? view : { scale: 1, x: 0, y: 0 });
  }
  const place = () => canvas.getBoundingClientRect();
  const offset = (event) => [event.clientX - place().left, event.clientY - place().top];
  const pixel = (event) => offset(event).map((side, k) => (side - [view.x, view.y][k]) / view.scale - 0.5);
  const fingers = ([[ax, ay], [bx, by]] = pointers.values()) => // their distance and middle
    [Math.hypot(ax - bx, ay - by), [(ax + bx) / 2, (ay + by) / 2]];
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button === 2 || pointers.size > 1) return; // the page's menu; a third finger
    typed = 0; // a stroke ends a number
    const at = pixel(event);
    event.preventDefault();
    root.focus({ preventScroll: true });
    [follow, playing] = [false, null];
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, offset(event));
    if (pointers.size === 2) { // what the first finger began to paint is taken back
      if (action?.before) { ids.set(action.before); colour(everything); }
      if (action?.corner) corners.pop();
      action = { pinch: fingers(), view };
    } else if (event.button === 1 || tool === "Move") {
      action = { pan: offset(event), view };
    } else if (tool === "Polygon") {
      const [first] = corners;
      if (corners.length > 2 && Math.hypot(at[0] - first[0], at[1] - first[1]) * view.scale < 10) close();
      else action = { corner: corners.push(at) };
      draw();
    } else if (tool === "Fill") {
      action = { before: ids.slice() };
      fill(ids, width, height, ...at.map(Math.round), object);
      colour(everything);
    } else {
      const erase = tool === "Eraser" || event.button === 5; // a pen's other end
      action = { before: ids.slice(), box: null, last: at, id: erase ? 0 : object };
      dab([at]);
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    cursor = pixel(event);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, offset(event));
    const { pan, pinch } = action ?? {}, [span, middle] = pointers.size > 1 ? fingers() : [];
    if (action?.last) dab([...(event.getCoalescedEvents?.() ?? []), event].map(pixel));
    else if (pan) zoom(1, pan, offset(event), action.view);
    else if (pinch && span) zoom(span / pinch[0], pinch[1], middle, action.view);
    else draw();
  });
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    const { box, before } = action ?? {};
    pointers.delete(event.pointerId);
    if (before || !pointers.size) action = null;
    if (before) commit(before, box);
  };
  canvas.onpointerleave = () => { cursor = null; draw(); };
  canvas.addEventListener("wheel", (event) => { // zooms, or scrolls the page
    const used = event.ctrlKey || root.contains(document.activeElement);
    if (used && zoom(1.0015 ** -event.deltaY, offset(event))) event.preventDefault();
  }, { passive: false });
  function restate() {
    const before = state, valid = ([frame]) => frame <= state.start && frame < (before.found || 1);
    state = model.get("state");
    if (state.run !== before.run) [past, future] = [past.filter(valid), future.filter(valid)];
    refresh();
  }
  const observer = new ResizeObserver(layout); // which also calls it for the first time
  observer.observe(root);
  model.on("change:state", restate);
  model.on("msg:custom", receive);
  /** For tests: frame and mask on show, a promise that all is sent, a pixel's place on canvas and page. */
  root.painter = {
    get frame() { return t; }, get ids() { return ids; }, settled: () => showing.then(() => sending), inView,
    onPage: (x, y) => inView([x, y]).map((side, k) => side + [place().left, place().top][k]),
  };
  send({ kind: "hello" });
  show(0);
  return () => {
    observer.disconnect();
    model.off("change:state", restate);
    model.off("msg:custom", receive);
  };
}

export default { render };
