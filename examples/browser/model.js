/** An EmoCaliber bundle in the browser: direct mode, all labels in one decoder pass, calibrated as Python does it. */

import * as ort from 'onnxruntime-web';
import { Tokenizer } from '@huggingface/tokenizers';

import { calibrated, softmax } from './calibration.js';
import { preprocess } from './image.js';
import { LabelTree } from './tree.js';

const SCHEMA = 1;
const CONFIDENCES = Array.from({ length: 19 }, (_, k) => (0.05 * (k + 1)).toFixed(2));

export class EmotionModel {
  /**
   * Returns the model of a bundle folder; every file is checked against its hash in the manifest.
   * @param {string} address Where the folder stands.
   * @param {string} [precision] A precision of the bundle; its default one if not given.
   */
  static async load(address, precision) {
    const manifest = await (await fetched(`${address}/bundle.json`)).json();
    if (manifest.schema_version !== SCHEMA || manifest.family !== 'idefics3') {
      throw new Error(`bundle ${address}: schema ${manifest.schema_version} of ${manifest.family} is not known here`);
    }
    const chosen = precision ?? manifest.default_precision;
    const graphs = manifest.precisions[chosen];
    if (!graphs) throw new Error(`bundle ${manifest.name} has no precision ${chosen}`);
    const read = (name) => verified(address, name, manifest.files[name]);
    const parse = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
    const session = async (name) => ort.InferenceSession.create(new Uint8Array(await read(name)));
    const model = new EmotionModel();
    model.manifest = manifest;
    model.precision = chosen;
    model.tokenizer = new Tokenizer(await parse('tokenizer.json'), {});
    model.calibrators = (await parse('calibration.json')).calibrators;
    model.sessions = {
      vision: await session(graphs.vision_encoder),
      embed: await session(graphs.embed_tokens),
      decoder: await session(graphs.decoder),
    };
    model.plans = new Map();
    return model;
  }

  /**
   * Returns the distribution over a label set.
   * @param {{pixels: Uint8Array, width: number, height: number}} image RGB, from `decodeImage`.
   * @param {string} [taxonomy] Name of one of the bundle's label sets; its default one if not given.
   */
  async predict(image, taxonomy = this.manifest.default_taxonomy) {
    const labels = this.manifest.taxonomies[taxonomy];
    if (!labels) throw new Error(`bundle ${this.manifest.name} has no label set ${taxonomy}`);
    const plan = await this.plan(labels);
    const { tile_size: edge } = this.manifest.preprocessing;
    const pixels = new ort.Tensor('float32', preprocess(image, this.manifest.preprocessing), [1, 3, edge, edge]);
    const { image_features: features } = await this.sessions.vision.run({ pixel_values: pixels });
    const embeds = plan.embeds.slice();
    embeds.set(features.data); // the image tokens come first
    const { scores, context } = await this.readTree(plan.prefix, embeds, plan.tree);
    const calibrator = this.calibrators.find(
      (c) => c.taxonomy === taxonomy && c.mode === 'direct' && c.precision === this.precision,
    );
    const stated =
      calibrator?.confidence?.kind === 'fusion' ? await this.statedConfidence(plan.tree, scores, context) : null;
    const probabilities = calibrated(scores, calibrator ?? null, stated);
    const top = probabilities.indexOf(Math.max(...probabilities));
    return {
      taxonomy,
      label: labels[top],
      confidence: probabilities[top],
      distribution: Object.fromEntries(labels.map((label, k) => [label, probabilities[k]])),
      calibrated: calibrator !== undefined,
    };
  }

  /** Returns what is constant for a label set: the prompt before the image, already read, and all that comes after. */
  async plan(labels) {
    const key = JSON.stringify(labels);
    if (!this.plans.has(key)) this.plans.set(key, await this.makePlan(labels));
    return this.plans.get(key);
  }

  async makePlan(labels) {
    const { prompts, image_block: block, decoder } = this.manifest;
    const { before_image: before, after_image: after } = prompts.direct;
    const image = block.before + block.token.repeat(block.count) + block.after;
    const ids = this.encode(before.replace('{labels}', () => labels.join(', ')) + image + after);
    const start = ids.indexOf(this.encode(block.token)[0]);
    const tree = new LabelTree(labels.map((label) => this.encode(`<answer>${label}</answer>`)));
    const response = [...tree.common, ...tree.tokens];
    if (ids.length + response.length > decoder.max_positions) throw new Error('these labels make too long a prompt');
    const nothing = { past: null, visible: [], position: 0 };
    const { context } = await this.read(nothing, await this.embed(ids.slice(0, start)), [0]);
    return { tree, prefix: context, embeds: await this.embed([...ids.slice(start), ...response]) };
  }

  /** Returns the expected value of the confidence that the model states after its most probable label. */
  async statedConfidence(answers, scores, context) {
    const path = answers.paths[scores.indexOf(Math.max(...scores))];
    const visible = context.visible.slice();
    for (const node of path) visible[visible.length - answers.size + node] = true;
    const chosen = { past: context.past, visible, position: context.position + path.length };
    const tree = new LabelTree(CONFIDENCES.map((text) => this.encode(`<confidence>${text}</confidence>`)));
    const read = await this.readTree(chosen, await this.embed([...tree.common, ...tree.tokens]), tree);
    return softmax(read.scores).reduce((sum, p, k) => sum + p * Number(CONFIDENCES[k]), 0);
  }

  /** Returns the log-likelihood of each path of a tree whose nodes are the last of these embeddings. */
  async readTree(context, embeds, tree) {
    const root = embeds.length / this.manifest.decoder.hidden_size - tree.size - 1;
    const rows = [root, ...tree.inner.map((node) => root + 1 + node)];
    const { logits, context: after } = await this.read(context, embeds, rows, tree);
    return { scores: tree.scores(logits), context: after };
  }

  /**
   * Returns the logits of the wanted rows, and the context with the new tokens in it; those of a tree stay hidden.
   * @param {{past: object|null, visible: boolean[], position: number}} context What was read so far.
   * @param {Float32Array} embeds (new tokens, hidden): first linear ones, then the nodes of the tree.
   */
  async read(context, embeds, rows, tree = null) {
    const { num_layers, num_kv_heads, head_dim, hidden_size } = this.manifest.decoder;
    const count = embeds.length / hidden_size;
    const linear = count - (tree?.size ?? 0);
    const stored = context.visible.length;
    const mask = new Uint8Array(count * (stored + count));
    const positions = new BigInt64Array(count);
    for (let i = 0; i < count; i++) {
      const row = mask.subarray(i * (stored + count), (i + 1) * (stored + count));
      context.visible.forEach((shown, j) => (row[j] = Number(shown)));
      for (let j = 0; j <= i; j++) row[stored + j] = Number(j < linear || tree.sees(i - linear, j - linear));
      positions[i] = BigInt(context.position + (i < linear ? i : linear + tree.depths[i - linear]));
    }
    const feeds = {
      inputs_embeds: new ort.Tensor('float32', embeds, [1, count, hidden_size]),
      attention_mask: new ort.Tensor('bool', mask, [1, 1, count, stored + count]),
      position_ids: new ort.Tensor('int64', positions, [1, count]),
      logit_rows: new ort.Tensor('int64', BigInt64Array.from(rows, BigInt), [rows.length]),
    };
    const empty = new ort.Tensor('float32', new Float32Array(0), [1, num_kv_heads, 0, head_dim]);
    const names = Array.from({ length: num_layers }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();
    for (const name of names) feeds[`past_key_values.${name}`] = context.past?.[name] ?? empty;
    const outputs = await this.sessions.decoder.run(feeds);
    const visible = [...context.visible, ...Array.from({ length: count }, (_, i) => i < linear)];
    const past = Object.fromEntries(names.map((name) => [name, outputs[`present.${name}`]]));
    return { logits: outputs.logits.data, context: { past, visible, position: context.position + linear } };
  }

  async embed(ids) {
    const input = new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
    return (await this.sessions.embed.run({ input_ids: input })).inputs_embeds.data;
  }

  encode(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }
}

async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answered ${response.status}`);
  return response;
}

async function verified(address, name, record) {
  const content = await (await fetched(`${address}/${name}`)).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', content));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (found !== record.sha256) throw new Error(`${name} does not match its SHA-256; it was changed or damaged`);
  return content;
}
