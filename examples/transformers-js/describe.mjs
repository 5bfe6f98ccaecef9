// node describe.mjs MODEL_DIR IMAGE [LABEL_SET [DTYPE]]: the reasoning that the model writes about an image.
//
// MODEL_DIR is what `emocaliber export transformers-js BUNDLE --out MODEL_DIR` wrote. transformers.js generates text; the
// calibrated distribution comes from label scores, which ../browser reads.
import { readFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { AutoModelForImageTextToText, AutoProcessor, env, RawImage } from '@huggingface/transformers';

const [folder, picture, labels = 'emotion6-7', dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder));
const name = basename(resolve(folder));

const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name, { dtype });
const prompts = JSON.parse(readFileSync(join(folder, 'prompts.json'), 'utf8'));
const inputs = await processor(prompts.reason[labels], [await RawImage.read(picture)]);
const written = await model.generate(inputs);
const response = written.slice(null, [inputs.input_ids.dims.at(-1), null]);
const [text] = processor.batch_decode(response, { skip_special_tokens: true });
console.log(text.split('<answer>')[0]);
