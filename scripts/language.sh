# shellcheck shell=bash
# Sourced by the scripts that print messages:   . "$root/scripts/language.sh"

# Print the message in the terminal's language, which is chosen as procguard/console/language.py does.
in_language() { # $1 English, $2 Chinese
    local preference
    for preference in "${PROCGUARD_LANG:-}" "${LC_ALL:-}" "${LC_MESSAGES:-}" "${LANG:-}"; do
        case $preference in
        zh*) printf '%s\n' "$2" && return ;;
        en*) break ;;
        esac
    done
    printf '%s\n' "$1"
}
