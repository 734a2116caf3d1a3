"""Options that keep known programs in the foreground, where they can be supervised. A table; pure."""

from __future__ import annotations

from collections.abc import Iterable

# Keyed by the name of the remaining process, as reported by the kernel (15 characters at most).
_HOW = {
    "nginx": "nginx -g 'daemon off;'",
    "redis-server": "redis-server --daemonize no",
    "valkey-server": "valkey-server --daemonize no",
    "memcached": "memcached (without -d)",
    "mongod": "mongod (without --fork)",
    "mysqld": "mysqld (without --daemonize)",
    "mariadbd": "mariadbd",
    "postgres": "postgres -D DIRECTORY",
    "httpd": "httpd -DFOREGROUND",
    "apache2": "apache2ctl -DFOREGROUND",
    "php-fpm": "php-fpm --nodaemonize",
    "haproxy": "haproxy -db",
    "sshd": "sshd -D",
    "dnsmasq": "dnsmasq --keep-in-foreground",
    "rsyslogd": "rsyslogd -n",
    "crond": "crond -f",
    "cron": "cron -f",
    "supervisord": "supervisord -n",
    "gunicorn": "gunicorn (without --daemon)",
    "uwsgi": "uwsgi (without --daemonize)",
    "celery": "celery worker (without --detach)",
    "keepalived": "keepalived -n",
    "squid": "squid -N",
    "vsftpd": "vsftpd -obackground=NO",
    "chronyd": "chronyd -d",
}


def how(names: Iterable[str]) -> str:
    """The command that stays in the foreground, "nginx -g 'daemon off;'"; "" if none of these programs is known."""
    return next((_HOW[one] for one in (name.partition(":")[0] for name in names) if one in _HOW), "")
