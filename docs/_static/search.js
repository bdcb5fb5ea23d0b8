// Lets the search take whole questions. Sphinx alone finds only pages that have every
// word, and ranks each by its best word.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // this is not the search page
  ["mean", "means"].forEach((word) => stopwords.add(word));
  const pagesWith = Search.performTermsSearch;

  // Return the pages that have the most of the words, with the sum of their scores.
  Search.performTermsSearch = (words, excluded) => {
    const pages = new Map();
    words.forEach((word) =>
      pagesWith(new Set([word]), excluded).forEach((page) => {
        const entry = pages.get(page[0]) || { page, score: 0, words: 0 };
        entry.score += page[4];
        entry.words += 1;
        pages.set(page[0], entry);
      }),
    );
    const most = Math.max(...[...pages.values()].map((entry) => entry.words));
    return [...pages.values()]
      .filter((entry) => entry.words === most)
      .map(({ page, score }) => [...page.slice(0, 4), score, ...page.slice(5)]);
  };
});
