// Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
// Runs the model beside the page, so that the page answers meanwhile. Each message has an id, and so has its answer.
'use strict';

let ort = null;
let session = null;

async function load({ script, wasm, model }) {
  ort = await import(URL.createObjectURL(new Blob([script], { type: 'text/javascript' })));
  ort.env.wasm.numThreads = 1; // more need headers of a server
  ort.env.wasm.wasmBinary = wasm;
  session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ['wasm'] });
  return [{}, []];
}

/** Runs the model on pixels of a canvas, of which opacity is left out. */
async function run({ pixels, width, height }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = pixels[from];
    rgb[to + 1] = pixels[from + 1];
    rgb[to + 2] = pixels[from + 2];
  }
  const start = performance.now();
  const found = await session.run({ image: new ort.Tensor('uint8', rgb, [1, height, width, 3]) });
  const milliseconds = performance.now() - start;
  const outputs = {};
  for (const [name, tensor] of Object.entries(found)) outputs[name] = { sizes: [...tensor.dims], data: tensor.data };
  return [{ outputs, milliseconds }, Object.values(outputs).map((output) => output.data.buffer)];
}

globalThis.addEventListener('message', async ({ data }) => {
  try {
    const [answer, transfer] = await (data.model ? load(data) : run(data));
    globalThis.postMessage({ id: data.id, ...answer }, { transfer });
  } catch (error) {
    globalThis.postMessage({ id: data.id, error: String(error?.message ?? error).split('\n')[0] }, {});
  }
});
