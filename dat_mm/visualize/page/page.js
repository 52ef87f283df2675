// Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
// The interactive page: its data is described in pack.py, and attention.js makes attention from it.
// Places are [x, y]: `picture` ones in pixels of the picture, `input` ones in pixels of the model's input.
'use strict';

(() => {
  const TYPES = { float32: Float32Array, int8: Int8Array, int16: Int16Array, uint8: Uint8Array };
  const find = (id) => document.getElementById(id);
  const header = JSON.parse(find('header').textContent);
  const { placement, layers, colours } = header;
  const {
    unpack, nearestQuery, placeOfPixel, places, tableAt, cellOf, pointWeights, strongest,
    onCanvas, drawQuery, drawStrongest, colourOf,
  } = window.attentionIn(placement, colours);
  const original = { width: header.size[0], height: header.size[1] };
  const image = new Image();
  const canvas = find('picture');
  const state = {
    layer: header.layer,
    query: header.query.slice(),
    head: 'all',
    group: 'all',
    topk: header.topk, // at most the points that a layer has
    wanted: header.topk,
    whose: 'query',
    where: 'deformed',
  };

  // ---- Data

  function attach(buffer) {
    for (const layer of layers) {
      layer.data = {};
      for (const [name, part] of Object.entries(layer.arrays)) {
        const length = part.shape.reduce((a, b) => a * b, 1);
        layer.data[name] = new TYPES[part.type](buffer, part.at, length);
      }
      layer.keys = layer.keyMap[0] * layer.keyMap[1];
      layer.keptMap = layer.map.map((n) => Math.ceil(n / layer.every));
      layer.headsOfGroup = layer.heads / layer.groups;
    }
  }

  // ---- Drawing

  /** A canvas to draw on, sized for its place on the screen; `scale` is its pixels per pixel of the picture. */
  function prepare(target, width) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const scale = (width * ratio) / original.width;
    const size = [Math.round(original.width * scale), Math.round(original.height * scale)];
    if (target.width !== size[0] || target.height !== size[1]) [target.width, target.height] = size;
    const pen = target.getContext('2d');
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.imageSmoothingEnabled = true;
    pen.drawImage(image, 0, 0, ...size);
    pen.fillStyle = 'rgba(0, 0, 0, 0.35)';
    pen.fillRect(0, 0, ...size);
    return { pen, scale, unit: ratio };
  }

  const shownGroup = (layer, group) => {
    if (state.head !== 'all' && Math.floor(state.head / layer.headsOfGroup) !== group) return false;
    return state.group === 'all' || state.group === group;
  };

  function drawAllPoints({ pen, scale, unit }, layer) {
    const at = places(layer, state.where);
    const side = Math.max(1, Math.min(3, 90 / Math.sqrt(layer.keys))) * unit;
    for (let group = 0; group < layer.groups; group++) {
      if (!shownGroup(layer, group)) continue;
      pen.fillStyle = colourOf(group, 0.75);
      for (let i = group * layer.keys; i < (group + 1) * layer.keys; i++) {
        const [x, y] = onCanvas([at[2 * i], at[2 * i + 1]], scale);
        pen.fillRect(x - side / 2, y - side / 2, side, side);
      }
    }
  }

  function drawArrows({ pen, scale, unit }, layer) {
    const from = places(layer, 'reference');
    const to = places(layer, 'deformed');
    const every = Math.max(1, Math.ceil(Math.sqrt(layer.keys / 500)));
    pen.lineWidth = unit;
    for (let group = 0; group < layer.groups; group++) {
      if (!shownGroup(layer, group)) continue;
      pen.strokeStyle = colourOf(group, 0.9);
      pen.beginPath();
      for (let row = 0; row < layer.keyMap[0]; row += every) {
        for (let column = 0; column < layer.keyMap[1]; column += every) {
          const i = 2 * (group * layer.keys + row * layer.keyMap[1] + column);
          const [x0, y0] = onCanvas([from[i], from[i + 1]], scale);
          const [x1, y1] = onCanvas([to[i], to[i + 1]], scale);
          const angle = Math.atan2(y1 - y0, x1 - x0);
          const tip = Math.min(5 * unit, Math.hypot(x1 - x0, y1 - y0) / 2);
          pen.moveTo(x0, y0);
          pen.lineTo(x1, y1);
          for (const turn of [-0.5, 0.5]) {
            pen.moveTo(x1, y1);
            pen.lineTo(x1 - tip * Math.cos(angle + turn), y1 - tip * Math.sin(angle + turn));
          }
        }
      }
      pen.stroke();
    }
  }

  /** The position bias that the query has at each pixel of the map, as a mean over the heads that are shown. */
  function drawBias({ pen, scale }, layer, query) {
    const [height, width] = layer.map;
    const values = new Float32Array(height * width);
    let most = 1e-12;
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const y = cellOf(layer, query.row, height > 1 ? (2 * row) / (height - 1) - 1 : 0, 0);
        const x = cellOf(layer, query.column, width > 1 ? (2 * column) / (width - 1) - 1 : 0, 1);
        let sum = 0;
        let count = 0;
        for (let m = 0; m < layer.heads; m++) {
          if (state.head !== 'all' ? m !== state.head : !shownGroup(layer, Math.floor(m / layer.headsOfGroup))) continue;
          sum += tableAt(layer.data.table, layer.tableSize, m, y, x);
          count += 1;
        }
        values[row * width + column] = sum / count;
        most = Math.max(most, Math.abs(sum / count));
      }
    }
    values.forEach((value, i) => {
      const corners = [-0.5, 0.5].map((d) =>
        onCanvas(placeOfPixel(layer, Math.floor(i / width) + d, (i % width) + d), scale));
      pen.fillStyle = value > 0 ? `rgba(230, 60, 40, ${(0.75 * value) / most})` : `rgba(40, 100, 230, ${(-0.75 * value) / most})`;
      pen.fillRect(corners[0][0], corners[0][1], corners[1][0] - corners[0][0], corners[1][1] - corners[0][1]);
    });
  }

  function drawBoxes({ pen, scale, unit }) {
    pen.font = `${11 * unit}px system-ui, sans-serif`;
    pen.textBaseline = 'bottom';
    for (const box of header.boxes) {
      const [left, top] = onCanvas([box.left, box.top], scale);
      const [right, bottom] = onCanvas([box.right, box.bottom], scale);
      pen.strokeStyle = '#fff';
      pen.lineWidth = 1.5 * unit;
      pen.strokeRect(left, top, right - left, bottom - top);
      const wide = pen.measureText(box.title).width;
      const line = Math.max(top, 14 * unit);
      pen.fillStyle = 'rgba(0, 0, 0, 0.6)';
      pen.fillRect(left, line - 14 * unit, wide + 6 * unit, 14 * unit);
      pen.fillStyle = '#fff';
      pen.fillText(box.title, left + 3 * unit, line - unit);
    }
  }

  // ---- The parts of the page

  function drawMain() {
    const layer = layers[state.layer];
    const query = nearestQuery(layer, state.query);
    const weights = pointWeights(layer, query, state.head, state.whose);
    const chosen = strongest(weights, state.topk, (group) => shownGroup(layer, group), layer.keys);
    const paper = prepare(canvas, canvas.clientWidth || 600);
    if (find('bias').checked && layer.tableSize) drawBias(paper, layer, query);
    if (find('every').checked) drawAllPoints(paper, layer);
    if (find('arrows').checked) drawArrows(paper, layer);
    if (find('boxes').checked) drawBoxes(paper);
    drawStrongest(paper, layer, weights, chosen, state.where, 9);
    drawQuery(paper, layer, query);
    state.shown = { query, weights, chosen };
  }

  const percent = (n) => `${(100 * n).toFixed(n < 0.0995 ? 1 : 0)} %`;

  function tell() {
    const layer = layers[state.layer];
    const { query, weights, chosen } = state.shown;
    const [x, y] = placeOfPixel(layer, query.row, query.column).map(Math.round);
    let [all, some, count] = [0, 0, 0];
    for (let i = 0; i < weights.length; i++) {
      if (!shownGroup(layer, Math.floor(i / layer.keys))) continue;
      all += weights[i];
      count += 1;
    }
    for (const i of chosen) some += weights[i];
    const whose = state.whose === 'all' ? 'All queries' : `The query at x ${x}, y ${y}`;
    const parts = [
      state.head === 'all' ? `mean of ${layer.heads} heads` : `head ${state.head}`,
      state.group === 'all' ? `${layer.groups === 1 ? 'one group' : `${layer.groups} groups`}` : `group ${state.group}`,
    ];
    find('summary').textContent =
      `${whose} in ${layer.label} (${parts.join(', ')}): the ${chosen.length} strongest of ${count} points hold ` +
      `${percent(some / (all || 1))} of the attention. Points are ${layer.offset.toFixed(1)} pixels from the grid on ` +
      `average, ${layer.offset_max.toFixed(0)} at most.`;
    canvas.setAttribute('aria-label', `Picture. ${find('summary').textContent}`);
    const at = places(layer, state.where);
    const heading = find('table');
    heading.replaceChildren(...chosen.slice(0, 10).map((i) => {
      const row = document.createElement('tr');
      const group = Math.floor(i / layer.keys);
      for (const text of [at[2 * i].toFixed(1), at[2 * i + 1].toFixed(1), group, percent(weights[i])]) {
        row.append(Object.assign(document.createElement('td'), { textContent: text }));
      }
      return row;
    }));
  }

  function drawFilm() {
    layers.forEach((layer, i) => {
      const button = find('film').children[i];
      button.setAttribute('aria-pressed', String(i === state.layer));
      const paper = prepare(button.querySelector('canvas'), 170);
      const query = nearestQuery(layer, state.query);
      const weights = i === state.layer && state.head === 'all'
        ? state.shown.weights
        : pointWeights(layer, query, 'all', state.whose);
      drawStrongest(paper, layer, weights, strongest(weights, 60, () => true, layer.keys), state.where, 5);
      drawQuery(paper, layer, query, 4);
    });
  }

  /** What the query sees in ViT, Swin, DCN and DAT, on the map of the layer. */
  function drawFields() {
    const layer = layers[state.layer];
    const { query } = state.shown;
    const [height, width] = layer.map;
    const first = [query.row, query.column].map((n) => Math.floor(n / 7) * 7);
    const rules = [
      { rows: [0, height], columns: [0, width] },
      { rows: [first[0], Math.min(first[0] + 7, height)], columns: [first[1], Math.min(first[1] + 7, width)] },
      { rows: [query.row - 1, query.row + 2], columns: [query.column - 1, query.column + 2] },
    ];
    [...find('fields').children].forEach((figure, i) => {
      const paper = prepare(figure.querySelector('canvas'), 260);
      if (i === 3) {
        const weights = state.whose === 'query' && state.head === 'all'
          ? state.shown.weights : pointWeights(layer, query, 'all', 'query');
        drawStrongest(paper, layer, weights, strongest(weights, state.topk, () => true, layer.keys), 'deformed', 6);
      } else {
        const { rows, columns } = rules[i];
        const side = Math.max(1.5, Math.min(5, 60 / Math.sqrt((rows[1] - rows[0]) * (columns[1] - columns[0])))) * paper.unit;
        paper.pen.fillStyle = colourOf(1, 0.85);
        for (let row = rows[0]; row < rows[1]; row++) {
          for (let column = columns[0]; column < columns[1]; column++) {
            const [x, y] = onCanvas(placeOfPixel(layer, row, column), paper.scale);
            paper.pen.fillRect(x - side / 2, y - side / 2, side, side);
          }
        }
      }
      drawQuery(paper, layer, query, 4);
    });
  }

  /** Draws the picture now, and the rest after it is on the screen. */
  let later = 0;
  function draw() {
    const start = performance.now();
    drawMain();
    state.milliseconds = performance.now() - start;
    cancelAnimationFrame(later);
    later = requestAnimationFrame(() => {
      later = requestAnimationFrame(() => {
        tell();
        drawFilm();
        drawFields();
        document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
      });
    });
  }

  // ---- Controls

  function setOptions(select, entries) {
    select.replaceChildren(...entries.map(([value, text]) =>
      Object.assign(document.createElement('option'), { value, textContent: text })));
  }

  function chooseLayer(number) {
    state.layer = (number + layers.length) % layers.length;
    const layer = layers[state.layer];
    find('layer').value = String(state.layer);
    setOptions(find('head'), [['all', `all ${layer.heads}`], ...Array.from({ length: layer.heads }, (_, m) => [m, `head ${m}`])]);
    setOptions(find('group'), [['all', `all ${layer.groups}`], ...Array.from({ length: layer.groups }, (_, g) => [g, `group ${g}`])]);
    chooseHead('all');
    chooseGroup('all');
    find('topk').max = String(Math.min(400, layer.groups * layer.keys));
    chooseCount(state.wanted);
    find('bias').disabled = !layer.tableSize;
    find('bias').parentElement.classList.toggle('off', !layer.tableSize);
    find('bias').parentElement.title = layer.tableSize ? '' : 'This layer has no table of position biases.';
  }

  /** A head has the points of one group, so that choosing one of them settles the other. */
  function chooseHead(head) {
    state.head = head;
    find('head').value = String(head);
    if (head !== 'all' && state.group !== 'all') chooseGroup(Math.floor(head / layers[state.layer].headsOfGroup));
  }

  function chooseGroup(group) {
    state.group = group;
    find('group').value = String(group);
    if (group !== 'all' && state.head !== 'all' && Math.floor(state.head / layers[state.layer].headsOfGroup) !== group) {
      chooseHead('all');
    }
  }

  function chooseCount(count) {
    state.wanted = Math.max(1, count);
    state.topk = Math.min(Number(find('topk').max), state.wanted);
    find('topk').value = String(state.topk);
    find('topk-value').textContent = String(state.topk);
  }

  const parse = (value) => (value === 'all' ? 'all' : Number(value));

  function chooseRadio(name, value) {
    state[name] = value;
    document.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
  }

  function next(kind, backwards) {
    const layer = layers[state.layer];
    const values = ['all', ...Array(kind === 'head' ? layer.heads : layer.groups).keys()];
    const at = values.indexOf(state[kind]) + (backwards ? values.length - 1 : 1);
    (kind === 'head' ? chooseHead : chooseGroup)(values[at % values.length]);
  }

  function moveQuery(columns, rows) {
    const layer = layers[state.layer];
    const { row, column } = nearestQuery(layer, state.query);
    const every = layer.every;
    // a picture that was flipped has the pixels of its map in the other order
    const [x, y] = [columns * (placement.across ? -1 : 1) * every, rows * (placement.down ? -1 : 1) * every];
    state.query = placeOfPixel(
      layer, Math.max(0, Math.min(layer.map[0] - 1, row + y)), Math.max(0, Math.min(layer.map[1] - 1, column + x)));
  }

  const toggle = (id) => { if (!find(id).disabled) find(id).checked = !find(id).checked; };
  const KEYS = {
    '[': () => chooseLayer(state.layer - 1),
    ']': () => chooseLayer(state.layer + 1),
    h: () => next('head'),
    H: () => next('head', true),
    g: () => next('group'),
    G: () => next('group', true),
    r: () => chooseRadio('where', state.where === 'deformed' ? 'reference' : 'deformed'),
    q: () => chooseRadio('whose', state.whose === 'query' ? 'all' : 'query'),
    a: () => toggle('arrows'),
    b: () => toggle('bias'),
    '+': () => chooseCount(state.topk + 10),
    '=': () => chooseCount(state.topk + 10),
    '-': () => chooseCount(state.topk - 10),
  };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === canvas && ARROWS[event.key]) {
      const far = event.shiftKey ? 5 : 1;
      moveQuery(...ARROWS[event.key].map((n) => n * far));
    } else if (KEYS[event.key] && event.target.tagName !== 'SELECT') {
      KEYS[event.key]();
    } else {
      return;
    }
    event.preventDefault();
    draw();
  }

  function placeOf(event) {
    const frame = canvas.getBoundingClientRect();
    return [
      ((event.clientX - frame.left) / frame.width) * original.width - 0.5,
      ((event.clientY - frame.top) / frame.height) * original.height - 0.5,
    ];
  }

  function connect() {
    setOptions(find('layer'), layers.map((layer, i) => [i, `${layer.label} (${layer.map[1]}×${layer.map[0]})`]));
    find('film').replaceChildren(...layers.map((layer, i) => {
      const button = Object.assign(document.createElement('button'), { type: 'button' });
      const details = Object.assign(document.createElement('span'), {
        textContent: `queries alike: ${layer.similarity.toFixed(2)}`,
        title: 'The mean cosine of the attention of two queries. At 1 all of them look at the same keys.',
      });
      button.append(document.createElement('canvas'), layer.label, details);
      button.addEventListener('click', () => { chooseLayer(i); draw(); });
      return button;
    }));
    const titles = [
      ['ViT', 'every pixel of the map'],
      ['Swin', 'the window of 7×7 that it is in'],
      ['DCN', 'nine places of its own, before they are moved'],
      ['DAT', 'points that all queries share, here with attention'],
    ];
    find('fields').replaceChildren(...titles.map(([name, what]) => {
      const figure = document.createElement('figure');
      const caption = document.createElement('figcaption');
      caption.append(name, Object.assign(document.createElement('span'), { textContent: what }));
      const small = document.createElement('canvas');
      small.setAttribute('role', 'img');
      small.setAttribute('aria-label', `${name}: ${what}`);
      figure.append(small, caption);
      return figure;
    }));
    find('boxes-label').hidden = !header.boxes.length;
    for (const [id, choose] of [['layer', chooseLayer], ['head', chooseHead], ['group', chooseGroup], ['topk', chooseCount]]) {
      find(id).addEventListener('input', () => { choose(parse(find(id).value)); draw(); });
    }
    for (const id of ['every', 'arrows', 'bias', 'boxes']) find(id).addEventListener('change', draw);
    for (const input of document.querySelectorAll('input[type="radio"]')) {
      input.addEventListener('change', () => { chooseRadio(input.name, input.value); draw(); });
    }
    canvas.addEventListener('click', (event) => {
      find('follow').checked = false;
      state.query = placeOf(event);
      draw();
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!find('follow').checked || event.pointerType === 'touch') return;
      state.query = placeOf(event);
      draw();
    });
    document.addEventListener('keydown', onKey);
    new ResizeObserver(draw).observe(canvas);
  }

  function explain() {
    const worst = Math.max(...layers.map((layer) => layer.error));
    const thinned = layers.filter((layer) => layer.every > 1);
    let text = `Attention is computed here, from queries and keys of ${header.bits} bits. `;
    text += `A key's share is off by ${(100 * worst).toPrecision(1)} percentage points at most, by comparison with the model ` +
      'on queries spread over the picture. ';
    for (const layer of thinned) text += `${layer.label} has one of ${layer.every}×${layer.every} queries. `;
    text += 'Keys in the padding of the input lie outside the picture.';
    find('exactness').textContent = text;
  }

  async function openPage() {
    image.src = header.picture;
    const [buffer] = await Promise.all([unpack(find('data').textContent), image.decode()]);
    find('data').remove();
    attach(buffer);
    canvas.style.aspectRatio = `${original.width} / ${original.height}`;
    // as wide as the page has room, but the whole picture is on the screen
    canvas.style.width = `min(100%, ${(78 * original.width) / original.height}vh)`;
    connect();
    chooseLayer(state.layer);
    explain();
    draw();
    document.body.dataset.ready = 'true';
  }

  // what the tests, and a curious reader, ask in the console
  window.deformableAttention = { state, layers, nearestQuery, pointWeights, places };

  openPage().catch((error) => {
    find('summary').textContent = `This page cannot be shown: ${error.message}`;
    throw error;
  });
})();
