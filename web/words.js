/** What our widgets say, in the language of the page: English sentences are the keys. No page. */

let words = {};

/** @param {Record<string, string>} translations By the English. */
export const setWords = (translations) => (words = translations);

/**
 * A sentence in the language of the page; in English where nobody has translated it.
 *
 * @param {string} english As it stands here, with {name} where a value goes.
 * @param {Record<string, string | number>} values By those names.
 */
export function t(english, values = {}) {
  const text = words[english] ?? english;
  return text.replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}
