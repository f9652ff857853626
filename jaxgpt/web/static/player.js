// Shows pictures one after the other, each for a moment, however fast they come.

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Player {
  // every: milliseconds that a picture stays at least; 0 is one picture of the screen.
  constructor(every = 0) {
    this.every = every;
    this.waiting = [];
    this.ends = [];
    this.shown = 0;
  }

  push(draw) {
    this.waiting.push(draw);
    if (this.waiting.length === 1) requestAnimationFrame((now) => this.step(now));
  }

  step(now) {
    if (!this.waiting.length) return;
    if (now - this.shown >= this.every) {
      this.shown = now;
      // Long texts are not to be waited for.
      const skip = still.matches ? this.waiting.length : Math.ceil(this.waiting.length / 90);
      for (let count = 0; count < (this.every ? 1 : skip); count++) this.waiting.shift()();
    }
    if (this.waiting.length) requestAnimationFrame((later) => this.step(later));
    else this.ends.splice(0).forEach((end) => end());
  }

  drained() {
    return this.waiting.length ? new Promise((end) => this.ends.push(end)) : Promise.resolve();
  }

  clear() {
    this.waiting = [];
    this.ends.splice(0).forEach((end) => end());
  }
}
