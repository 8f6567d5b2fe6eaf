// Draws strokes, shrinks them to 8×8 as the digits that the network was trained on, runs both files, and times them in turns.
import {loadLiteRt, loadAndCompile, Tensor} from '@litertjs/core';

const element = id => document.getElementById(id);
const drawing = element('drawing').getContext('2d'), seen = element('seen').getContext('2d');
const small = new OffscreenCanvas(32, 32).getContext('2d', {willReadFrequently: true});
const INK = 312;     // of 32×32 pixels, a digit of the training images covers so many on average
const WIDEST = 24;   // pixels; all of them are 32 high
const ROUNDS = 60;   // of timing after each change
let strokes = [], changed = false, roundsLeft = 0;

/** 64 numbers from 0 to 16: how many of each 4×4 pixels are inked, after the digit was brought to the usual size and place. */
function shrink(strokes) {
  const points = strokes.flat(), length = strokes.reduce((sum, stroke) => sum + stroke.slice(1).reduce(
    (sum, [x, y], i) => sum + Math.hypot(x - stroke[i][0], y - stroke[i][1]), 0), 0);
  const [left, top] = [0, 1].map(axis => Math.min(...points.map(point => point[axis])));
  const [width, height] = [0, 1].map(axis => Math.max(1, Math.max(...points.map(point => point[axis])) - [left, top][axis]));
  const pen = Math.min(7, Math.max(3, INK / (length * 28 / height + 1)));
  const scaleY = (32 - pen) / height, scaleX = Math.min(scaleY, (WIDEST - pen) / width);
  small.clearRect(0, 0, 32, 32);
  Object.assign(small, {lineWidth: pen, lineCap: 'round', lineJoin: 'round'});
  for (const stroke of strokes) {
    small.beginPath();
    for (const [x, y] of [stroke[0], ...stroke]) small.lineTo(16 + (x - left - width / 2) * scaleX, 16 + (y - top - height / 2) * scaleY);
    small.stroke();
  }
  const {data} = small.getImageData(0, 0, 32, 32), image = new Float32Array(64);
  for (let i = 0; i < 1024; i++) image[(i >> 7) * 8 + ((i & 31) >> 2)] += data[4 * i + 3] / 255;
  return image.map(Math.round);
}

async function load(name) {
  const model = await loadAndCompile(`${name}.tflite`, {accelerator: 'wasm'});
  const run = async image => {
    const input = new Tensor(image, [1, 8, 8, 1]), [output] = await model.run(input), logits = await output.data();
    input.delete();
    output.delete();
    return logits;
  };
  return {name, run, times: []};
}

function show(image, logits) {
  const pixels = new ImageData(8, 8);
  image.forEach((value, i) => pixels.data.set([16 + 14 * value, 20 + 14 * value, 27 + 13 * value, 255], 4 * i));
  seen.putImageData(pixels, 0, 0);
  const powers = logits.map(logit => Math.exp(logit - Math.max(...logits))), sum = powers.reduce((a, b) => a + b);
  element('beliefs').querySelectorAll('i').forEach((bar, digit) => {
    bar.style.width = `${100 * powers[digit] / sum}%`;
    bar.parentNode.nextSibling.textContent = `${Math.round(100 * powers[digit] / sum)} %`;
  });
  element('digit').textContent = logits.indexOf(Math.max(...logits));
}

function clear() {
  strokes = [];
  roundsLeft = 0;
  drawing.clearRect(0, 0, 560, 560);
  show(new Float32Array(64), new Float32Array(10));
  element('digit').textContent = '';
}

function listen() {
  const canvas = element('drawing');
  const point = event => [event.offsetX * 560 / canvas.clientWidth, event.offsetY * 560 / canvas.clientHeight];
  Object.assign(drawing, {lineWidth: 40, lineCap: 'round', lineJoin: 'round', strokeStyle: '#f4f1e8'});
  const extend = event => {
    const stroke = strokes.at(-1);
    drawing.beginPath();
    drawing.moveTo(...(stroke.at(-1) ?? point(event)));
    stroke.push(point(event));
    drawing.lineTo(...point(event));
    drawing.stroke();
    changed = true;
  };
  canvas.addEventListener('pointerdown', event => {
    canvas.setPointerCapture(event.pointerId);
    strokes.push([]);
    extend(event);
  });
  canvas.addEventListener('pointermove', event => canvas.hasPointerCapture(event.pointerId) && extend(event));
  element('clear').addEventListener('click', clear);
}

/** Runs that take long enough for the browser's clock, which counts in tenths of a millisecond; the time of one, in ms. */
async function timed({run}, image) {
  const start = performance.now();
  let runs = 0, time;
  do {
    await run(image);
    runs++;
  } while ((time = performance.now() - start) < 4);
  return time / runs;
}

function showTimes(networks) {
  const middle = times => [...times].sort((a, b) => a - b)[times.length >> 1];
  const [dense, sparse] = networks.map(({times}) => middle(times));
  networks.forEach(({name}, i) => {
    element(`${name}-time`).textContent = `${[dense, sparse][i].toFixed(2)} ms`;
    element(`${name}-bar`).style.width = `${100 * [dense, sparse][i] / Math.max(dense, sparse)}%`;
  });
  const times = Math.max(dense / sparse, sparse / dense).toFixed(1);
  element('ratio').textContent = times === '1.0' ? 'as fast' : `${times} × ${sparse < dense ? 'faster' : 'slower'}`;
}

async function main() {
  element('beliefs').innerHTML = Array.from({length: 10}, (_, digit) =>
    `<span>${digit}</span><div class="bar"><i></i></div><span></span>`).join('');
  clear();
  listen();
  const facts = await (await fetch('facts.json')).json();
  element('zeros').textContent = `${Math.round(100 * facts.zeros)} %`;
  element('sizes').textContent = ['dense', 'sparse'].map(name => (facts.bytes[name] / 1e6).toFixed(1)).join(' → ') + ' MB';
  await loadLiteRt('./litertjs/core/wasm/');
  const networks = [await load('dense'), await load('sparse')];
  element('status').textContent = `${(100 * facts.top1).toFixed(1)} % of ${facts.images} handwritten digits that it never saw are read rightly.`;
  let image;
  const frame = async () => {
    if (changed && strokes.length) {
      [changed, roundsLeft, image] = [false, ROUNDS, shrink(strokes)];
      const [dense, sparse] = [await networks[0].run(image), await networks[1].run(image)];
      // Neither file is trusted for having run without an error.
      if (dense.some((logit, i) => !(Math.abs(logit - sparse[i]) < 1e-3))) throw new Error(`the files differ: ${dense} and ${sparse}`);
      if (strokes.length) show(image, sparse);
    }
    if (roundsLeft) {
      roundsLeft--;
      for (const network of networks) network.times = [...network.times.slice(-ROUNDS), await timed(network, image)];
      showTimes(networks);
    }
    requestAnimationFrame(() => frame().catch(fail));
  };
  await frame();
}

function fail(error) {
  element('status').textContent = `It does not run here: ${error.message}`;
  element('status').className = 'failed';
}

main().catch(fail);
