/** Label trees: all candidate answers as token paths, hung on one prompt and scored in a single decoder pass. */

export class LabelTree {
  /** @param {number[][]} paths Tokens of every candidate, closing tag included, so that none begins another. */
  constructor(paths) {
    const shared = commonLength(paths);
    this.common = paths[0].slice(0, shared);
    this.tokens = [];
    this.parents = []; // -1: the last token before the tree
    this.depths = [];
    const children = new Map();
    this.paths = paths.map((path) => {
      let parent = -1;
      return path.slice(shared).map((token, depth) => {
        const key = `${parent} ${token}`;
        if (!children.has(key)) {
          children.set(key, this.tokens.length);
          this.tokens.push(token);
          this.parents.push(parent);
          this.depths.push(depth);
        }
        parent = children.get(key);
        return parent;
      });
    });
    this.inner = [...new Set(this.parents.filter((parent) => parent >= 0))].sort((a, b) => a - b);
  }

  get size() {
    return this.tokens.length;
  }

  /** Whether a node attends to another: to itself, and to those above it. */
  sees(node, other) {
    for (let at = node; at >= 0; at = this.parents[at]) if (at === other) return true;
    return false;
  }

  /**
   * Returns the log-likelihood of every path in nats.
   * @param {Float32Array} logits (1 + inner nodes, vocabulary): of the token before the tree, then of each inner node.
   */
  scores(logits) {
    const vocabulary = logits.length / (1 + this.inner.length);
    const rows = [-1, ...this.inner];
    const logProbability = new Map();
    rows.forEach((node, row) => {
      const values = logits.subarray(row * vocabulary, (row + 1) * vocabulary);
      const peak = values.reduce((a, b) => Math.max(a, b));
      const total = peak + Math.log(values.reduce((sum, value) => sum + Math.exp(value - peak), 0));
      logProbability.set(node, (token) => values[token] - total);
    });
    return this.paths.map((path) =>
      path.reduce((sum, node) => sum + logProbability.get(this.parents[node])(this.tokens[node]), 0),
    );
  }
}

function commonLength(paths) {
  const shortest = Math.min(...paths.map((path) => path.length));
  for (let i = 0; i < shortest; i++) if (new Set(paths.map((path) => path[i])).size > 1) return i;
  return shortest;
}
