/** The page: loads the bundle once, then shows the distribution of each image it is given. */

import { decodeImage } from './image.js';
import { EmotionModel } from './model.js';

const asked = new URLSearchParams(location.search);
const bundle = asked.get('bundle') ?? '../../runtime/bundles/default';
const element = (id) => document.getElementById(id);
const [file, drop, image, status, bars, taxonomy] = ['file', 'drop', 'image', 'status', 'bars', 'taxonomy'].map(element);

let model;
let shown; // the decoded image

async function start() {
  model = await EmotionModel.load(bundle, asked.get('precision') ?? undefined);
  const { manifest, precision } = model;
  for (const name of Object.keys(manifest.taxonomies)) {
    taxonomy.add(new Option(name, name, false, name === manifest.default_taxonomy));
  }
  file.disabled = taxonomy.disabled = false;
  element('note').textContent = `${manifest.name} ${manifest.version}, ${precision}, licence ${manifest.license}`;
  say('Ready.');
  if (asked.has('image')) await open(await (await fetch(asked.get('image'))).blob());
}

async function open(blob) {
  shown = await decodeImage(blob);
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
  element('hint').textContent = 'Choose another image';
  await show();
}

async function show() {
  if (!shown) return;
  say('Looking…');
  const begun = performance.now();
  const prediction = await model.predict(shown, taxonomy.value);
  const ms = Math.round(performance.now() - begun);
  const sure = (100 * prediction.confidence).toFixed(1);
  say(`${prediction.label}, ${sure}% sure${prediction.calibrated ? '' : ' (uncalibrated)'}, ${ms} ms`);
  const entries = Object.entries(prediction.distribution).sort(([, a], [, b]) => b - a);
  bars.replaceChildren(...entries.map(([label, p]) => bar(label, p)));
  bars.dataset.distribution = JSON.stringify(prediction.distribution);
}

function bar(label, p) {
  const item = document.createElement('li');
  const [name, track, number] = ['span', 'span', 'span'].map((tag) => document.createElement(tag));
  const fill = document.createElement('i');
  name.textContent = label;
  number.textContent = `${(100 * p).toFixed(1)}%`;
  fill.style.width = `${100 * p}%`;
  track.append(fill);
  item.append(name, track, number);
  return item;
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle('error', isError);
}

/** Runs a step; what goes wrong is shown, not lost. */
function attempt(step) {
  return step().catch((error) => say(error.message, true));
}

file.addEventListener('change', () => file.files[0] && attempt(() => open(file.files[0])));
taxonomy.addEventListener('change', () => attempt(show));
drop.addEventListener('dragover', (event) => {
  event.preventDefault();
  drop.classList.add('over');
});
drop.addEventListener('dragleave', () => drop.classList.remove('over'));
drop.addEventListener('drop', (event) => {
  event.preventDefault();
  drop.classList.remove('over');
  const dropped = event.dataTransfer.files[0];
  if (dropped && model) attempt(() => open(dropped));
});
attempt(start);
