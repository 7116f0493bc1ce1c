/**
 * Lines `word: value`, as the text fields of a node hold them, changed for one word. Pure functions
 * over text: reading such lines is the server's business.
 */

/** The marks of a sentence are no part of a word's name. */
export const bare = (word) => word.replace(/^[\s"'(]+|[\s.,;:!?"')]+$/g, "");

const lines = (text) => text.split("\n");
const nameOf = (line) => /^\s*(.+?)\s*[:=：]\s*[^:=：,;，]*$/.exec(line)?.[1]?.toLowerCase();
const isOf = (line, word) => nameOf(line) === bare(word).toLowerCase();

/** The text with a line for a word; a line of its own is replaced, and of several the last counts. */
export function withValue(text, word, value) {
  const kept = lines(withoutValue(text, word)).filter((line) => line.trim());
  return [...kept, `${bare(word)}: ${value}`].join("\n");
}

/** The text without the lines that are of a word alone. */
export const withoutValue = (text, word) =>
  lines(text)
    .filter((line) => !isOf(line, word))
    .join("\n");

const names = (text) =>
  text
    .split(/[,;，\n]/)
    .map((name) => name.trim())
    .filter(Boolean);

/** A list of words with commas, one of them taken in or out. */
export function toggled(text, word) {
  const wanted = bare(word);
  const kept = names(text).filter((name) => name.toLowerCase() !== wanted.toLowerCase());
  return (kept.length < names(text).length ? kept : [...kept, wanted]).join(", ");
}

/** Whether a list of words names one, alone or in a row with others. */
export const isNamed = (text, word) =>
  names(text).some((name) => name.toLowerCase().split(/\s+/).includes(bare(word).toLowerCase()));

/** A number as short as it is exact to a thousandth. */
export const short = (number) => String(Math.round(number * 1000) / 1000);
