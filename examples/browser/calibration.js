/** Calibrators: from raw label scores to probabilities, as `runtime/calibration.py` and `runtime/confidence.py` do it. */

const EDGE = 1e-6;

/** Returns probabilities proportional to exp(scores). */
export function softmax(scores) {
  const peak = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - peak));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

/**
 * Returns `softmax(W (s - mean s) / T + b)`, and then the top label's mapped confidence.
 * @param {number[]} scores Raw scores in nats.
 * @param {object|null} calibrator An entry of calibration.json; null leaves the probabilities raw.
 * @param {number|null} stated The confidence the model states; only a fusion needs it.
 */
export function calibrated(scores, calibrator, stated) {
  if (!calibrator) return softmax(scores);
  const mean = scores.reduce((a, b) => a + b) / scores.length;
  let centred = scores.map((score) => score - mean);
  if (calibrator.weight) centred = calibrator.weight.map((row) => row.reduce((sum, w, k) => sum + w * centred[k], 0));
  const probabilities = softmax(centred.map((score, k) => score / calibrator.temperature + calibrator.bias[k]));
  return calibrator.confidence ? withConfidence(probabilities, calibrator.confidence, stated) : probabilities;
}

function withConfidence(probabilities, map, stated) {
  const top = probabilities.indexOf(Math.max(...probabilities));
  const rest = probabilities.map((p, k) => (k === top ? 0 : p));
  const total = rest.reduce((a, b) => a + b);
  const share = rest.map((p, k) => (k === top ? 0 : total > 0 ? p / total : 1 / (rest.length - 1)));
  const runnerUp = Math.max(...share);
  const floor = runnerUp / (1 + runnerUp) + 1e-9;
  const confidence = Math.min(1, Math.max(floor, confidenceOf(map, probabilities[top], stated)));
  return share.map((p, k) => (k === top ? confidence : p * (1 - confidence)));
}

function confidenceOf(map, top, stated) {
  if (map.kind === 'fusion') return sigmoid(map.intercept + map.top * logit(top) + map.verbalized * logit(stated));
  if (map.kind === 'beta') {
    const p = clipped(top);
    return sigmoid(map.intercept + map.success * Math.log(p) - map.failure * Math.log1p(-p));
  }
  if (map.kind === 'isotonic') return interpolated(top, map.tops, map.confidences);
  throw new Error(`the confidence map ${map.kind} is not known to this page`);
}

function interpolated(x, xs, ys) {
  const after = xs.findIndex((knot) => knot > x);
  if (after === 0) return ys[0];
  if (after < 0) return ys.at(-1);
  const share = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
  return ys[after - 1] + share * (ys[after] - ys[after - 1]);
}

const clipped = (p) => Math.min(1 - EDGE, Math.max(EDGE, p));
const logit = (p) => Math.log(clipped(p)) - Math.log1p(-clipped(p));
const sigmoid = (x) => 0.5 * (1 + Math.tanh(0.5 * x));
