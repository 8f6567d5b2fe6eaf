// Runs LiteRT files in LiteRT.js, one thread. `wasm.run` starts it under Node.js; a page can import `run` as well.
//
//     node wasm_runner.mjs LITERT FOLDER
//
// LITERT holds the npm packages. FOLDER holds `jobs.json`, {"repeats": n, "jobs": [{"id": 3, "calls": 2, "inputs":
// [{"dtype": "float32", "shape": [1, 8, 8, 1]}, …]}, …]}, and of every job `3.tflite` and `3.in`: input after input, each
// with the values of all calls. Written as they come: `current`, the job at work; `3.out`, alike; `3.json`, {"error":
// null, "outputs": [{"dtype": …, "shape": …}, …]}; and at the end `times.json`, id → the seconds of each
// round.

const WARM_UP = 1000;  // ms: V8 compiles WebAssembly twice, the better code comes while the first runs
const ARRAYS = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};

/** Run the jobs. `core`: URL of LiteRT.js; `wasm`: folder of its .wasm; `read`, `write`: of a name, asynchronous. */
export async function run(core, wasm, read, write) {
  const said = [];
  for (const level of ['debug', 'error', 'info', 'log', 'warn']) console[level] = (...words) => said.push(words.join(' '));
  const {loadLiteRt, loadAndCompile, Tensor} = await import(core);
  await loadLiteRt(wasm);
  const text = async name => new TextDecoder().decode(await read(name));
  const {jobs, repeats} = JSON.parse(await text('jobs.json'));
  const loaded = [];

  // LiteRT.js may say that something failed, go on, and return what was in memory.
  const checked = async action => {
    said.length = 0;
    const errors = () => said.filter(line => line.startsWith('ERROR'));
    let result;
    try {
      result = await action();
    } catch (error) {
      // After a trap the module's memory is not to be trusted: the process ends, and the jobs left get another.
      if (error instanceof WebAssembly.RuntimeError) throw error;
      throw new Error([error.message, ...errors()].join(' '));
    }
    if (errors().length) throw new Error(errors().join(' '));
    return result;
  };

  for (const {id, calls, inputs} of jobs) {
    await write('current', String(id));
    const result = {error: null};
    try {
      const bytes = await read(`${id}.in`), model = await checked(async () =>
        loadAndCompile(await read(`${id}.tflite`), {accelerator: 'wasm'}));
      let offset = 0;
      const values = inputs.map(({dtype, shape}) => {
        const size = shape.reduce((a, b) => a * b, 1);
        const all = new ARRAYS[dtype](bytes.slice(offset, offset += calls * size * ARRAYS[dtype].BYTES_PER_ELEMENT).buffer);
        return call => new Tensor(all.slice(call * size, (call + 1) * size), shape);
      });
      const parts = [];
      for (let call = 0; call < calls; call++) {
        const tensors = values.map(value => value(call)), outputs = await checked(() => model.run(tensors));
        result.outputs = outputs.map(({type}) => ({dtype: type.dtype, shape: [...type.layout.dimensions]}));
        for (const [i, output] of outputs.entries()) (parts[i] ??= []).push(await output.data());
        [...tensors, ...outputs].forEach(tensor => tensor.delete());
      }
      await write(`${id}.out`, new Blob(parts.flat()));
      if (repeats) loaded.push({id, model, tensors: values.map(value => value(0)), times: []});
      else model.delete();
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) throw error;
      result.error = `${error.name}: ${error.message}`;
    }
    await write(`${id}.json`, JSON.stringify(result));
  }

  const once = async ({model, tensors}) => (await model.run(tensors)).forEach(output => output.delete());
  for (const job of loaded) {
    await write('current', String(job.id));
    for (const end = performance.now() + WARM_UP; performance.now() < end;) await once(job);
  }
  // Round by round over all files: what else the machine does meanwhile falls on all of them alike.
  for (let round = 0; round < repeats; round++) {
    for (const job of loaded) {
      await write('current', String(job.id));
      const start = performance.now();
      await once(job);
      job.times.push(performance.now() - start);
    }
  }
  const seconds = loaded.map(({id, times}) => [id, times.map(time => time / 1000)]);
  await write('times.json', JSON.stringify(Object.fromEntries(seconds)));
}

if (globalThis.process?.versions.node) {
  const [fs, path, url, vm, {createRequire}] = await Promise.all(
    ['node:fs', 'node:path', 'node:url', 'node:vm', 'node:module'].map(name => import(name)));
  const [litert, folder] = process.argv.slice(2);
  const core = path.join(litert, 'node_modules/@litertjs/core'), wasm = path.join(core, 'wasm') + path.sep;
  // What LiteRT.js, written for browsers, looks for.
  Object.assign(globalThis, {
    self: globalThis,
    importScripts: file => vm.runInThisContext(fs.readFileSync(file, 'utf8'), {filename: file}),
    require: createRequire(wasm), __dirname: wasm, __filename: path.join(wasm, 'litert_wasm_internal.js'),
  });
  globalThis.ReadableStreamDefaultReader ??= class {};
  const say = console.error;
  const write = async (name, data) =>
    fs.writeFileSync(path.join(folder, name), data instanceof Blob ? new Uint8Array(await data.arrayBuffer()) : data);
  try {
    await run(url.pathToFileURL(path.join(core, 'dist/index.js')).href, wasm,
      async name => new Uint8Array(fs.readFileSync(path.join(folder, name))), write);
  } catch (error) {
    say(`${error.name}: ${error.message}`);
    process.exit(1);
  }
}
