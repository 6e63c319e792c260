// A text that grows, as elements: what is finished is left alone, and only the last block is made again.

import { blocks, render } from "./markdown.js";

export class Growing {
  /** `box` is what the text is shown in. */
  constructor(box) {
    this.box = box;
    this.length = 0; // characters that are shown
    this.done = 0; // characters whose blocks are final
    this.tail = []; // nodes of the last block
    this.next_ms = 0;
  }

  /**
   * Shows the text, which begins with what was shown before (to compare all of it each time would be quadratic). Long
   * blocks are made less often, to leave time.
   */
  update(text, now = performance.now()) {
    if (text.length === this.length || now < this.next_ms) return;
    if (text.length < this.length) this.reset();
    const begun = performance.now();
    this.length = text.length;
    const rest = text.slice(this.done);
    const made = blocks(rest, true);
    const last = made.at(-1);
    if (made.length !== 1 || !goesOn(this.tail[0], last.part.firstChild)) {
      for (const old of this.tail) old.remove();
      made.slice(0, -1).forEach(({ part }) => this.box.append(part));
      this.tail = last ? [...last.part.childNodes] : [];
      this.box.append(...this.tail);
    }
    if (made.length > 1) this.done += offset(rest, last.line);
    const took = performance.now() - begun;
    this.next_ms = now + 5 * took;
  }

  /** Shows the whole text, as it is when nothing grows any more: links may be named behind where they are used. */
  finish(text) {
    this.reset();
    this.length = text.length;
    this.box.append(render(text));
  }

  reset() {
    this.box.replaceChildren();
    Object.assign(this, { length: 0, done: 0, tail: [], next_ms: 0 });
  }
}

/** Gives code that goes on its new text; the element stays, and with it the button and how far it was scrolled. */
function goesOn(old, made) {
  const [before, now] = [old, made].map((element) => element?.classList?.contains("code") && element);
  if (!before || !now || before.dataset.language !== now.dataset.language) return false;
  before.querySelector("code").replaceChildren(...now.querySelector("code").childNodes);
  return true;
}

/** Where a line begins. */
function offset(text, line) {
  let at = 0;
  for (; line > 0; line--) at = text.indexOf("\n", at) + 1;
  return at;
}
