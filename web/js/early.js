/*
 * Runs before the first paint, so that a dark page never flashes white. A classic script, because modules run too late. If a module
 * fails to load (for example after a change of network), the page is reloaded once; after that an error is shown.
 */
(function () {
  try {
    var theme = localStorage.getItem('procguard.theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  } catch (error) {
    /* storage is disabled: use the system's theme */
  }

  var AGAIN_AFTER_MS = 60000;
  var failed = false;

  function drawn() {
    var app = document.getElementById('app');
    return app !== null && app.childElementCount > 0;
  }

  function lately() {
    try {
      var before = Number(sessionStorage.getItem('procguard.reloaded'));
      sessionStorage.setItem('procguard.reloaded', String(Date.now()));
      return Date.now() - before < AGAIN_AFTER_MS;
    } catch (error) {
      return true; /* without storage it might reload endlessly */
    }
  }

  /* unstyled: a style sheet is missing, which a drawn page requires too */
  function notLoaded(unstyled) {
    if (failed || (drawn() && !unstyled)) return;
    var again = !lately();
    failed = again || !unstyled;
    if (again) location.reload();
    else if (failed) document.body.append(document.getElementById('not-loaded').content.cloneNode(true));
  }

  /* only errors of elements: load errors do not bubble, and errors of the page's own code are no reason for a reload */
  function onError(event) {
    var node = event.target;
    if (node === window || !node || (node.tagName !== 'SCRIPT' && !(node.tagName === 'LINK' && node.rel === 'stylesheet'))) return;
    var unstyled = node.tagName === 'LINK';
    function report() {
      notLoaded(unstyled);
    }
    if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', report);
    else report();
  }

  window.addEventListener('error', onError, true);
  window.addEventListener('unhandledrejection', function () {
    notLoaded(false);
  }); /* the texts failed to load */
})();
