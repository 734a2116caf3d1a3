/** Commands named on a page, in the form of the manager's installation; procguard/hints.py defines both forms. */
const installed = document.documentElement.dataset.commands === 'procguard';

export function commands(text) {
  if (!installed) return text;
  return text
    .replace(/\binvoke ((?:agents|context|notify|operations|state|token))\.([a-z]+)/g, 'procguard $1 $2')
    .replace(/\binvoke (?=[a-z])/g, 'procguard ')
    .replace(/(?:\.\/)?\bstart_(manager|worker)\.sh\b/g, 'procguard $1');
}
