// Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
// The live page: makes the model's input of a picture as its test does, has worker.js run the model, and draws what comes.
// Places are [x, y] in pixels of the picture, or of the model's input where it says so.
'use strict';

(() => {
  const MOST_BARS = 6;
  const MOST_KEYS = 400;
  const find = (id) => document.getElementById(id);
  const header = JSON.parse(find('header').textContent);
  const canvas = find('picture');
  const hasMarks = ['detection', 'segmentation'].includes(header.task);
  const state = {
    query: [0.5, 0.5], // as a share of the picture, so that the next picture has it too
    threshold: header.threshold,
    topk: 60,
    size: 1,
    shown: null, // the picture, its placement, and what the model gave for it
    layer: null,
    drawn: 0,
  };

  // ---- The model

  const waiting = new Map();
  let worker = null;
  let broken = null;
  let lastId = 0;

  function ask(message, moved) {
    lastId += 1;
    return new Promise((resolve, reject) => {
      if (broken) throw broken;
      waiting.set(lastId, { resolve, reject });
      worker.postMessage({ id: lastId, ...message }, moved);
    });
  }

  /** The text of an element, undone, without keeping it in the page. */
  async function take(id) {
    const text = find(id).textContent || (window.modelParts ?? []).join('');
    find(id).remove();
    return window.attentionIn().unpack(text);
  }

  async function loadModel() {
    // no module: a page from the disk cannot start one
    worker = new Worker(URL.createObjectURL(new Blob([find('worker').textContent], { type: 'text/javascript' })));
    worker.addEventListener('message', ({ data }) => {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data);
    });
    worker.addEventListener('error', (event) => {
      broken = new Error(event.message || 'its worker does not start');
      for (const { reject } of waiting.values()) reject(broken);
      waiting.clear();
    });
    const [script, wasm, model] = [await take('runtime-script'), await take('runtime-wasm'), await take('model')];
    delete window.modelParts;
    say('Starting the model …');
    await ask({ script, wasm, model }, [script, wasm, model]);
  }

  // ---- The input of the model

  /** The size of a picture after a step of `resizing`, which resizing.py describes. */
  function resized(step, width, height) {
    const by = (ratio) => [Math.floor(width * ratio + 0.5), Math.floor(height * ratio + 0.5)];
    const { size } = state;
    if (step.kind === 'exact') return [step.width, step.height].map((n) => Math.max(1, Math.round(n * size)));
    if (step.kind === 'fit') {
      return by(size * Math.min(step.long / Math.max(width, height), step.short / Math.min(width, height)));
    }
    if (step.kind === 'into') return by(Math.min(step.width / width, step.height / height));
    const alongWidth = { short: width < height, long: width > height, width: true, height: false }[step.edge];
    return alongWidth
      ? [step.size, Math.floor((step.size * height) / width)]
      : [Math.floor((step.size * width) / height), step.size];
  }

  /** Rounds as Python does: halves go to the even number. */
  const roundEven = (n) => (n % 1 === 0.5 && Math.floor(n) % 2 === 0 ? Math.floor(n) : Math.round(n));

  /** Where a picture comes to lie in the input: `size` of the whole, then the corner and size that are kept of it. */
  function place(width, height, ready) {
    let size = [width, height];
    let corner = [0, 0];
    let kept = null;
    let input = null;
    for (const step of ready ? [] : header.resizing) {
      if (step.kind === 'crop') {
        corner = [step.width, step.height].map((n, i) => Math.max(0, roundEven((size[i] - n) / 2)));
        kept = [step.width, step.height].map((n, i) => Math.min(n, size[i]));
      } else if (step.kind === 'fill') {
        input = [step.width, step.height];
      } else {
        size = resized(step, ...size).map((n) => Math.max(1, n));
      }
    }
    kept ??= size;
    return {
      size, corner, kept, input: input ?? kept, scale: [size[0] / width, size[1] / height], across: false, down: false,
    };
  }

  function blank(width, height) {
    const paper = Object.assign(document.createElement('canvas'), { width, height });
    const pen = paper.getContext('2d', { willReadFrequently: true });
    pen.imageSmoothingQuality = 'high';
    return [paper, pen];
  }

  /** Runs the model on a picture, which is a canvas, and shows what it finds if that is still `wanted`. */
  async function look(picture, ready, wanted) {
    const placement = place(picture.width, picture.height, ready);
    const [width, height] = placement.input;
    const [, pen] = blank(width, height);
    pen.fillRect(0, 0, width, height);
    pen.drawImage(picture, ...placement.corner.map((n) => -n), ...placement.size);
    const { data: pixels } = pen.getImageData(0, 0, width, height);
    const { outputs, milliseconds } = await ask({ pixels, width, height }, []);
    if (!wanted()) return;
    state.shown = { picture, placement, outputs, milliseconds, pixels, ready };
    state.layer = layerOf(outputs, placement);
    draw();
  }

  // ---- What the model gave

  /** How far queries are apart along an axis, and where the first is: ops/grid.py has the same. */
  function queryAxis(n, convention) {
    const cells = convention === 'dat' ? n : Math.max(n - 1, 1);
    return [(1 - n) / cells, 2 / cells];
  }

  /** The layer as attention.js takes it, from the outputs that watched.py describes. */
  function layerOf(outputs, placement) {
    if (!header.attention) return null;
    const [q, k, points, table, logits] = ['q', 'k', 'points', 'table', 'logits'].map((name) => outputs[`attention_${name}`]);
    const { heads, groups, first, step, convention } = header.attention;
    const map = q.sizes.slice(2, 4);
    const keyMap = k.sizes.slice(2, 4);
    const axes = map.map((n) => queryAxis(n, convention));
    const inInput = points.data.map((_, i) => {
      const axis = i % 2; // of the place, which has x first; a point has y first
      return (((points.data[i ^ 1] + 1) / 2) * (map[1 - axis] - 1)) * step[axis] + first[axis];
    });
    const ones = new Float32Array(heads).fill(1);
    return {
      label: header.attention.label, heads, groups, map, keyMap, first, step, every: 1, keptMap: map,
      keys: keyMap[0] * keyMap[1], headsOfGroup: heads / groups,
      queryStart: axes.map((axis) => axis[0]), queryStep: axes.map((axis) => axis[1]),
      tableSize: table ? table.sizes.slice(2) : null,
      data: {
        q: q.data, k: k.data, qStep: ones, kStep: ones, positions: points.data, points: inInput, table: table?.data,
        biases: logits?.data,
      },
      math: window.attentionIn(placement, header.colours),
    };
  }

  const nameOf = (label) => header.classes[label] ?? `class ${label}`;
  const colourOf = (label) => header.palette[label % header.palette.length];

  /** A number of 64 bits by its lower half. */
  const lower = (output) => new Int32Array(output.data.buffer, output.data.byteOffset, 2 * output.data.length);

  /** The detections from the threshold on, the best first, with their boxes in the picture. */
  function detections({ outputs, placement }) {
    const labels = lower(outputs.labels);
    const found = [];
    for (const [row, score] of outputs.scores.data.entries()) {
      if (score < state.threshold || labels[2 * row] < 0) continue;
      const input = outputs.boxes.data.subarray(4 * row, 4 * row + 4);
      const box = [...input].map((n, i) => (n + placement.corner[i % 2]) / placement.scale[i % 2]);
      found.push({ row, score, label: labels[2 * row], box });
    }
    return found;
  }

  /** The share of the pixels that each class has, the largest first. */
  function shares({ outputs, placement }) {
    const labels = lower(outputs.labels);
    const width = outputs.labels.sizes[2];
    const counts = new Map();
    for (let y = 0; y < placement.kept[1]; y++) {
      for (let x = 0; x < placement.kept[0]; x++) {
        const label = labels[2 * (y * width + x)];
        counts.set(label, (counts.get(label) ?? 0) + 1);
      }
    }
    const all = placement.kept[0] * placement.kept[1];
    return [...counts].toSorted((a, b) => b[1] - a[1]).map(([label, count]) => ({ label, share: count / all }));
  }

  const percent = (n) => `${(100 * n).toFixed(n < 0.0995 ? 1 : 0)} %`;

  const FINDINGS = {
    classification: ({ outputs }) => [...outputs.scores.data.entries()]
      .toSorted((a, b) => b[1] - a[1]).map(([label, score]) => ({ label, value: score, text: percent(score) })),
    detection: (shown) => detections(shown).map(({ label, score }) => ({ label, value: score, text: score.toFixed(2) })),
    segmentation: (shown) => shares(shown).map(({ label, share }) => ({ label, value: share, text: percent(share) })),
    backbone: () => [],
  };

  // ---- Drawing

  /** What a detection's mask, S x S numbers of what is in its box, covers of the box: a small picture in its colour. */
  function maskOf({ sizes, data }, row, colour, width, height) {
    const side = sizes[2];
    const start = row * side * sizes[3];
    const [paper, pen] = blank(width, height);
    const image = pen.createImageData(width, height);
    const value = parseInt(colour.slice(1), 16);
    const at = (n, of) => {
      const cell = Math.min(Math.max(((n + 0.5) / of) * side - 0.5, 0), side - 1);
      const low = Math.min(Math.floor(cell), side - 2);
      return [low, cell - low];
    };
    for (let y = 0; y < height; y++) {
      const [top, down] = at(y, height);
      for (let x = 0; x < width; x++) {
        const [left, right] = at(x, width);
        const i = start + top * side + left;
        const upper = data[i] * (1 - right) + data[i + 1] * right;
        const under = data[i + side] * (1 - right) + data[i + side + 1] * right;
        if (upper * (1 - down) + under * down >= header.maskThreshold) {
          image.data.set([value >> 16, (value >> 8) & 255, value & 255, 140], 4 * (y * width + x));
        }
      }
    }
    pen.putImageData(image, 0, 0);
    return paper;
  }

  function drawDetections({ pen, scale, unit }, shown) {
    const found = detections(shown).reverse(); // the best on top
    if (shown.outputs.box_masks) {
      for (const { row, label, box } of found) {
        const [left, top, right, bottom] = box.map((n) => n * scale);
        const size = [right - left, bottom - top].map((n) => Math.max(1, Math.min(300, Math.round(n))));
        pen.drawImage(maskOf(shown.outputs.box_masks, row, colourOf(label), ...size), left, top, right - left, bottom - top);
      }
    }
    pen.font = `${12 * unit}px system-ui, sans-serif`;
    pen.textBaseline = 'bottom';
    for (const { label, score, box } of found) {
      const [left, top, right, bottom] = box.map((n) => n * scale);
      const title = `${nameOf(label)} ${score.toFixed(2)}`;
      const wide = pen.measureText(title).width + 8 * unit;
      const line = Math.max(top, 16 * unit);
      pen.strokeStyle = colourOf(label);
      pen.lineWidth = 2 * unit;
      pen.strokeRect(left, top, right - left, bottom - top);
      const start = Math.max(0, Math.min(left, pen.canvas.width - wide));
      pen.fillStyle = 'rgba(0, 0, 0, 0.7)';
      pen.fillRect(start, line - 16 * unit, wide, 16 * unit);
      pen.fillStyle = '#fff';
      pen.fillText(title, start + 4 * unit, line - unit);
    }
  }

  function drawLabels({ pen, scale }, { outputs, placement }) {
    const [width, height] = placement.kept;
    const labels = lower(outputs.labels);
    const across = outputs.labels.sizes[2];
    const [paper, small] = blank(width, height);
    const image = small.createImageData(width, height);
    const values = header.palette.map((colour) => parseInt(colour.slice(1), 16));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const value = values[labels[2 * (y * across + x)] % values.length];
        image.data.set([value >> 16, (value >> 8) & 255, value & 255, 140], 4 * (y * width + x));
      }
    }
    small.putImageData(image, 0, 0);
    const [left, top] = placement.corner.map((n, i) => (n / placement.scale[i]) * scale);
    pen.drawImage(paper, left, top, (width / placement.scale[0]) * scale, (height / placement.scale[1]) * scale);
  }

  /** What was found, on a canvas of its own: it stays the same while only the query changes. */
  function overlay(scale, unit) {
    const key = [canvas.width, canvas.height, state.threshold].join();
    if (state.shown.overlay?.key !== key) {
      const [paper, pen] = blank(canvas.width, canvas.height);
      (header.task === 'detection' ? drawDetections : drawLabels)({ pen, scale, unit }, state.shown);
      state.shown.overlay = { key, paper };
    }
    return state.shown.overlay.paper;
  }

  function drawAttention(paper, layer) {
    const { nearestQuery, pointWeights, strongest, places, onCanvas, drawStrongest, drawQuery } = layer.math;
    const { pen, scale, unit } = paper;
    const query = nearestQuery(layer, state.query.map((n, i) => n * size()[i] - 0.5));
    const weights = pointWeights(layer, query, 'all', 'query');
    find('topk').max = String(Math.min(MOST_KEYS, weights.length)); // the value follows where it is less
    find('topk').value = String(state.topk);
    find('topk-value').textContent = find('topk').value;
    const chosen = strongest(weights, Number(find('topk').value), () => true, layer.keys);
    if (find('every').checked) {
      const at = places(layer, 'deformed');
      const side = Math.max(1, Math.min(3, 90 / Math.sqrt(layer.keys))) * unit;
      for (let i = 0; i < weights.length; i++) {
        const [x, y] = onCanvas([at[2 * i], at[2 * i + 1]], scale);
        pen.fillStyle = layer.math.colourOf(Math.floor(i / layer.keys), 0.75);
        pen.fillRect(x - side / 2, y - side / 2, side, side);
      }
    }
    drawStrongest(paper, layer, weights, chosen, 'deformed', 9);
    drawQuery(paper, layer, query);
    Object.assign(state.shown, { query, weights, chosen });
  }

  const size = () => [state.shown.picture.width, state.shown.picture.height];

  /** Draws the picture again, with what was found in it. */
  function draw() {
    if (!state.shown) return;
    const [width, height] = size();
    const { placement } = state.shown;
    find('empty').hidden = true;
    canvas.hidden = false;
    canvas.style.aspectRatio = `${width} / ${height}`;
    canvas.style.width = `min(100%, ${(72 * width) / height}vh)`;
    const unit = Math.min(window.devicePixelRatio || 1, 2);
    const scale = ((canvas.clientWidth || 600) * unit) / width;
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    const pen = canvas.getContext('2d');
    pen.imageSmoothingQuality = 'high';
    pen.drawImage(state.shown.picture, 0, 0, canvas.width, canvas.height);
    const [left, top] = placement.corner.map((n, i) => (n / placement.scale[i]) * scale);
    const [wide, tall] = placement.kept.map((n, i) => (n / placement.scale[i]) * scale);
    if (wide < canvas.width - 1 || tall < canvas.height - 1) { // what the model does not see
      pen.fillStyle = 'rgba(0, 0, 0, 0.55)';
      pen.beginPath();
      pen.rect(0, 0, canvas.width, canvas.height);
      pen.rect(left, top, wide, tall);
      pen.fill('evenodd');
    }
    const paper = { pen, scale, unit };
    if (hasMarks && find('marks').checked) pen.drawImage(overlay(scale, unit), 0, 0);
    if (state.layer && find('attention').checked) drawAttention(paper, state.layer);
    tell();
    state.drawn += 1;
    document.body.dataset.drawn = String(state.drawn);
  }

  let due = false;

  function drawSoon() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  }

  function bar({ label, value, text }) {
    const row = document.createElement('li');
    const [name, number, frame, filled] = ['span', 'span', 'span', 'span'].map((tag) => document.createElement(tag));
    name.className = 'name';
    name.textContent = nameOf(label);
    number.textContent = text;
    frame.className = 'bar';
    filled.style.width = `${100 * Math.min(value, 1)}%`;
    if (header.task !== 'classification') filled.style.background = colourOf(label);
    frame.append(filled);
    row.append(name, number, frame);
    return row;
  }

  function tell() {
    const { milliseconds, placement, query, weights, chosen } = state.shown;
    const found = FINDINGS[header.task](state.shown);
    const rows = found.slice(0, MOST_BARS).map(bar);
    if (!rows.length) {
      rows.push(Object.assign(document.createElement('li'), { className: 'none', textContent: 'nothing with such a score' }));
    }
    find('bars').replaceChildren(...rows);
    const words = found.slice(0, MOST_BARS).map(({ label, text }) => `${nameOf(label)} ${text}`).join(', ');
    canvas.setAttribute('aria-label', header.task === 'backbone' ? 'Picture' : `Picture: ${words || 'nothing found'}`);
    const rate = camera.stream ? `, ${camera.rate.toFixed(camera.rate < 9.5 ? 1 : 0)} pictures a second` : '';
    say(`${milliseconds.toFixed(0)} ms for ${placement.input.join('×')} pixels${rate}`);
    if (!state.layer || !find('attention').checked) {
      find('summary').textContent = '';
      return;
    }
    const [x, y] = state.layer.math.placeOfPixel(state.layer, query.row, query.column).map(Math.round);
    let [some, all] = [0, 0];
    for (const i of chosen) some += weights[i];
    for (const weight of weights) all += weight;
    find('summary').textContent = `The query at x ${x}, y ${y} in ${state.layer.label}: the ${chosen.length} strongest of ` +
      `${weights.length} points hold ${percent(some / all)} of its attention.`;
  }

  function say(text, wrong = false) {
    find('status').textContent = text;
    find('status').classList.toggle('wrong', wrong);
    // a screen reader is not told of each picture of the camera
    find('status').setAttribute('aria-live', camera.stream && !wrong ? 'off' : 'polite');
  }

  // ---- Pictures

  let ready = false;
  let running = false;
  let next = null;
  let opened = 0; // how many sources so far: files, examples, and the camera with all its pictures

  /** Begins with a new source. Returns what says later whether it is still the last. */
  function begin() {
    stopCamera();
    opened += 1;
    const mine = opened;
    return () => opened === mine;
  }

  /** Looks at a picture, or at the last of those that came while another was looked at. */
  async function show(picture, asItIs, wanted) {
    if (!wanted()) return;
    if (!ready || running) {
      next = [picture, asItIs, wanted];
      return;
    }
    running = true;
    try {
      if (!camera.stream) say('Looking …');
      await look(picture, asItIs, wanted);
    } catch (error) {
      if (wanted()) {
        stopCamera();
        say(`The model does not run on this picture: ${error.message}`, true);
      }
    }
    running = false;
    await showNext();
  }

  async function showNext() {
    if (!next) return;
    const waited = next;
    next = null;
    await show(...waited);
  }

  function copyOf(source, width, height) {
    const [paper, pen] = blank(width, height);
    pen.fillStyle = '#fff'; // behind what is transparent
    pen.fillRect(0, 0, width, height);
    pen.drawImage(source, 0, 0);
    return paper;
  }

  async function openFile(file) {
    const wanted = begin();
    try {
      const bitmap = await createImageBitmap(file);
      await show(copyOf(bitmap, bitmap.width, bitmap.height), false, wanted);
    } catch {
      if (wanted()) say(`${file.name || 'What was dropped'} is no picture that this browser reads`, true);
    }
  }

  async function openExample(image, asItIs) {
    const wanted = begin();
    await image.decode();
    await show(copyOf(image, image.naturalWidth, image.naturalHeight), asItIs, wanted);
  }

  const camera = { stream: null, rate: 0 };

  function stopCamera() {
    for (const track of camera.stream?.getTracks() ?? []) track.stop();
    camera.stream = null;
    find('camera').setAttribute('aria-pressed', 'false');
  }

  async function startCamera() {
    const wanted = begin();
    let stream = null;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    } catch (error) {
      if (wanted()) say(`There is no camera for this page: ${error.message}`, true);
      return;
    }
    if (!wanted()) { // something else was opened while the user was asked
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    Object.assign(camera, { stream, rate: 0 });
    find('camera').setAttribute('aria-pressed', 'true');
    const video = Object.assign(document.createElement('video'), { muted: true, playsInline: true, srcObject: stream });
    await video.play();
    let last = 0;
    while (camera.stream === stream) {
      // eslint-disable-next-line no-await-in-loop
      await new Promise((resolve) => { requestAnimationFrame(resolve); });
      if (camera.stream !== stream) break;
      // eslint-disable-next-line no-await-in-loop
      await show(copyOf(video, video.videoWidth, video.videoHeight), false, wanted);
      const now = performance.now();
      const rate = last ? 1000 / (now - last) : 0;
      camera.rate = camera.rate ? 0.8 * camera.rate + 0.2 * rate : rate;
      last = now;
    }
  }

  // ---- Controls

  function moveQuery(columns, rows) {
    const layer = state.layer;
    const { row, column } = state.shown.query;
    const inside = (n, most) => Math.max(0, Math.min(most - 1, n));
    const to = layer.math.placeOfPixel(layer, inside(row + rows, layer.map[0]), inside(column + columns, layer.map[1]));
    state.query = to.map((n, i) => (n + 0.5) / size()[i]);
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function connect() {
    find('open').addEventListener('click', () => find('file').click());
    find('file').addEventListener('change', () => {
      if (find('file').files.length) openFile(find('file').files[0]);
      find('file').value = '';
    });
    find('camera').addEventListener('click', () => {
      if (!camera.stream) startCamera();
      else {
        begin();
        draw(); // without the pictures a second
      }
    });
    find('camera').disabled = !navigator.mediaDevices;
    find('camera').title = navigator.mediaDevices ? '' : 'This browser gives no camera to this page.';
    for (const [i, source] of header.examples.entries()) {
      const button = Object.assign(document.createElement('button'), { type: 'button' });
      const image = Object.assign(new Image(), { src: source, alt: `Example ${i + 1}` });
      button.append(image);
      button.addEventListener('click', () => openExample(image, header.prepared));
      find('examples').append(button);
    }
    for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
      document.addEventListener(kind, (event) => {
        event.preventDefault();
        document.body.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
        if (kind === 'drop' && event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
      });
    }
    document.addEventListener('paste', (event) => {
      if (event.clipboardData.files.length) openFile(event.clipboardData.files[0]);
    });
    for (const kind of ['pointermove', 'pointerdown']) {
      canvas.addEventListener(kind, (event) => {
        if (kind === 'pointermove' && event.pointerType === 'touch') return;
        const frame = canvas.getBoundingClientRect();
        state.query = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
        drawSoon();
      });
    }
    canvas.addEventListener('keydown', (event) => {
      if (!ARROWS[event.key] || !state.layer || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      moveQuery(...ARROWS[event.key].map((n) => n * (event.shiftKey ? 5 : 1)));
      draw();
    });
    for (const id of ['marks', 'attention', 'every']) find(id).addEventListener('change', draw);
    for (const id of ['threshold', 'topk']) {
      find(id).value = String(state[id]);
      find(`${id}-value`).textContent = find(id).value;
      find(id).addEventListener('input', () => {
        state[id] = Number(find(id).value);
        find(`${id}-value`).textContent = find(id).value;
        draw();
      });
    }
    find('size').addEventListener('change', () => {
      state.size = Number(find('size').value);
      if (state.shown && !camera.stream) show(state.shown.picture, state.shown.ready, begin());
    });
    window.addEventListener('resize', drawSoon);
  }

  function hideWhatIsNotThere() {
    find('threshold-part').hidden = header.task !== 'detection';
    find('predictions').hidden = header.task === 'backbone';
    find('marks-part').hidden = !hasMarks;
    find('size-part').hidden = !header.resizes;
    for (const part of document.querySelectorAll('.of-attention')) part.hidden = !header.attention;
    document.querySelector('fieldset').hidden = !hasMarks && !header.attention;
  }

  async function openPage() {
    hideWhatIsNotThere();
    connect();
    find('facts').textContent = header.facts;
    const start = performance.now();
    const notices = find('notices').textContent;
    find('notices').remove();
    await loadModel();
    find('licences').textContent = new TextDecoder().decode(await window.attentionIn().unpack(notices));
    ready = true;
    state.loading = performance.now() - start;
    say(`Ready, after ${(state.loading / 1000).toFixed(1)} s`);
    const example = find('examples').querySelector('img');
    if (next) await showNext();
    else if (example && !opened) await openExample(example, header.prepared);
    document.body.dataset.ready = 'true';
  }

  // what the tests, and a curious reader, ask in the console
  window.live = { state, header, place, detections: () => detections(state.shown) };

  openPage().catch((error) => {
    say(`This page cannot run its model: ${error.message}`, true);
    throw error;
  });
})();
