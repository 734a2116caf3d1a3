/*
 * Runs before the first paint, so that a dark page never flashes white. A classic script: modules come too late. And where one of
 * them does not come at all (a network that changed under way), no page would say so: this loads it once more, then says it.
 */
(function () {
  try {
    var theme = localStorage.getItem('procguard.theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  } catch (error) {
    /* storage is off: the system's theme it is */
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
      return true; /* without this memory it might reload endlessly */
    }
  }

  /* unstyled: a style sheet is missing, which a page that was drawn needs as well */
  function notLoaded(unstyled) {
    if (failed || (drawn() && !unstyled)) return;
    var again = !lately();
    failed = again || !unstyled;
    if (again) location.reload();
    else if (failed) document.body.append(document.getElementById('not-loaded').content.cloneNode(true));
  }

  /* of an element: errors of scripts do not bubble, and those of the page's own code are no reason to load it again */
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
  }); /* the texts did not come */
})();
