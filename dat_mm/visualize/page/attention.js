// Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
// Makes the attention of a query from the queries, keys, points and table of a layer, and draws it. Two pages have it.
// Places are [x, y]: `picture` ones in pixels of the picture, `input` ones in pixels of the model's input.
'use strict';

/** What can be done with layers whose input was made from a picture as `placement` tells; groups have the colours. */
window.attentionIn = (placement, colours) => {
  const QUERY_COLOUR = '#ff2d2d';

  // ---- Data

  async function unpack(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).arrayBuffer();
  }

  // ---- Places

  function flip([x, y]) {
    const [width, height] = placement.kept;
    return [placement.across ? width - 1 - x : x, placement.down ? height - 1 - y : y];
  }

  function toInput(place) {
    return flip(place.map((n, i) => (n + 0.5) * placement.scale[i] - 0.5 - placement.corner[i]));
  }

  function toPicture(place) {
    return flip(place).map((n, i) => (n + placement.corner[i] + 0.5) / placement.scale[i] - 0.5);
  }

  /** The [row, column] of a map that is kept and nearest to a place of the picture, and its number among the kept. */
  function nearestQuery(layer, place) {
    const wanted = toInput(place).map((n, i) => (n - layer.first[i]) / layer.step[i]);
    const nearest = [wanted[1], wanted[0]].map((n, axis) => {
      const kept = Math.round((n - Math.floor(layer.every / 2)) / layer.every);
      return Math.min(Math.max(kept, 0), layer.keptMap[axis] - 1);
    });
    const [row, column] = nearest.map((n, axis) =>
      Math.min(n * layer.every + Math.floor(layer.every / 2), layer.map[axis] - 1));
    return { row, column, number: nearest[0] * layer.keptMap[1] + nearest[1] };
  }

  function placeOfPixel(layer, row, column) {
    return toPicture([column * layer.step[0] + layer.first[0], row * layer.step[1] + layer.first[1]]);
  }

  /** Where the points of a layer are in the picture, [x0, y0, x1, ...], all groups. */
  function places(layer, where) {
    layer.places ??= {};
    if (!layer.places[where]) {
      const from = where === 'reference' ? layer.data.reference : layer.data.points;
      const count = layer.groups * layer.keys;
      const found = new Float32Array(2 * count);
      for (let i = 0; i < count; i++) {
        const at = 2 * (where === 'reference' ? i % layer.keys : i);
        found.set(toPicture([from[at], from[at + 1]]), 2 * i);
      }
      layer.places[where] = found;
    }
    return layer.places[where];
  }

  // ---- Attention

  /** The table's value for head m at cell (y, x), between its cells; outside, it counts as zero. */
  function tableAt(table, size, m, y, x) {
    const [height, width] = size;
    const top = Math.floor(y);
    const left = Math.floor(x);
    const start = m * height * width;
    let sum = 0;
    for (let i = 0; i < 2; i++) {
      const row = top + i;
      if (row < 0 || row >= height) continue;
      const down = i ? y - top : 1 - (y - top);
      for (let j = 0; j < 2; j++) {
        const column = left + j;
        if (column < 0 || column >= width) continue;
        sum += down * (j ? x - left : 1 - (x - left)) * table[start + row * width + column];
      }
    }
    return sum;
  }

  /** The cell of the table for a query at [row, column] and a point [y, x] in [-1, 1]: half their displacement. */
  function cellOf(layer, at, point, axis) {
    const position = layer.queryStart[axis] + layer.queryStep[axis] * at;
    return ((position - point) / 2 + 1) / 2 * (layer.tableSize[axis] - 1);
  }

  function addLogits(layer, m, query, logits) {
    const { q, k, qStep, kStep, table, positions, biases } = layer.data;
    const dim = q.length / (layer.heads * layer.keptMap[0] * layer.keptMap[1]);
    const step = qStep[m] * kStep[m];
    const qStart = (m * layer.keptMap[0] * layer.keptMap[1] + query.number) * dim;
    const group = Math.floor(m / layer.headsOfGroup);
    for (let key = 0; key < layer.keys; key++) {
      const kStart = (m * layer.keys + key) * dim;
      let sum = 0;
      for (let d = 0; d < dim; d++) sum += q[qStart + d] * k[kStart + d];
      logits[key] = sum * step;
      if (biases) logits[key] += biases[(m * layer.keptMap[0] * layer.keptMap[1] + query.number) * layer.keys + key];
      if (table) {
        const at = 2 * (group * layer.keys + key);
        const y = cellOf(layer, query.row, positions[at], 0);
        const x = cellOf(layer, query.column, positions[at + 1], 1);
        logits[key] += tableAt(table, layer.tableSize, m, y, x);
      }
    }
  }

  /** The attention of a query in head m, a number for each key; they sum to 1. */
  function headAttention(layer, m, query) {
    const weights = new Float32Array(layer.keys);
    if (layer.data.rows) {
      const start = (m * layer.keptMap[0] * layer.keptMap[1] + query.number) * layer.keys;
      for (let key = 0; key < layer.keys; key++) weights[key] = layer.data.rows[start + key] ** 2;
    } else {
      addLogits(layer, m, query, weights);
      let most = -Infinity;
      for (const logit of weights) if (logit > most) most = logit;
      for (let key = 0; key < layer.keys; key++) weights[key] = Math.exp(weights[key] - most);
    }
    let sum = 0;
    for (const weight of weights) sum += weight;
    for (let key = 0; key < layer.keys; key++) weights[key] /= sum;
    return weights;
  }

  /** What is drawn for a layer: the weight of each point of each group, as a mean over the heads that are chosen. */
  function pointWeights(layer, query, head, whose) {
    const weights = new Float32Array(layer.groups * layer.keys);
    for (let m = 0; m < layer.heads; m++) {
      if (head !== 'all' && m !== head) continue;
      const row = whose === 'all'
        ? layer.data.received.subarray(m * layer.keys, (m + 1) * layer.keys)
        : headAttention(layer, m, query);
      const start = Math.floor(m / layer.headsOfGroup) * layer.keys;
      const share = head === 'all' ? 1 / layer.headsOfGroup : 1;
      for (let key = 0; key < layer.keys; key++) weights[start + key] += share * row[key];
    }
    return weights;
  }

  /** The numbers of the `count` largest weights, the largest first, among the groups that are shown. */
  function strongest(weights, count, shown, keys) {
    const found = [];
    for (let i = 0; i < weights.length; i++) if (shown(Math.floor(i / keys)) && weights[i] > 0) found.push(i);
    found.sort((a, b) => weights[b] - weights[a]);
    return found.slice(0, count);
  }

  // ---- Drawing

  const onCanvas = (place, scale) => [(place[0] + 0.5) * scale, (place[1] + 0.5) * scale];

  function disc(pen, x, y, radius, fill, edge) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fillStyle = fill;
    pen.fill();
    if (edge) {
      pen.strokeStyle = edge;
      pen.stroke();
    }
  }

  function drawQuery({ pen, scale, unit }, layer, query, radius = 7) {
    const [x, y] = onCanvas(placeOfPixel(layer, query.row, query.column), scale);
    pen.lineWidth = 2 * unit;
    disc(pen, x, y, radius * unit, 'rgba(255, 45, 45, 0.35)', QUERY_COLOUR);
    disc(pen, x, y, 2 * unit, '#fff');
  }

  function drawStrongest({ pen, scale, unit }, layer, weights, chosen, where, largest) {
    const at = places(layer, where);
    const most = chosen.length ? weights[chosen[0]] : 1;
    pen.lineWidth = 0.7 * unit;
    for (const i of [...chosen].reverse()) {
      const [x, y] = onCanvas([at[2 * i], at[2 * i + 1]], scale);
      const radius = (1.2 + (largest - 1.2) * Math.sqrt(weights[i] / most)) * unit;
      disc(pen, x, y, radius, colourOf(Math.floor(i / layer.keys), 0.85), 'rgba(0, 0, 0, 0.6)');
    }
  }

  function colourOf(group, alpha = 1) {
    const value = parseInt(colours[group % colours.length].slice(1), 16);
    return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${alpha})`;
  }

  return {
    unpack, toInput, toPicture, nearestQuery, placeOfPixel, places, tableAt, cellOf, headAttention, pointWeights, strongest,
    onCanvas, disc, drawQuery, drawStrongest, colourOf,
  };
};
