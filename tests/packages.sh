# For scripts to source: which of Debian's packages are there.

# not_installed PACKAGE…: prints those that are missing, one a line.
not_installed() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

# needs WHAT HINT PACKAGE…: ends the script where some are missing. It says WHAT is not done, and HINT behind them.
needs() {
    local what=$1 hint=$2 missing
    mapfile -t missing < <(not_installed "${@:3}")
    [ ${#missing[@]} -eq 0 ] && return
    echo "$what; missing: ${missing[*]}$hint" >&2
    # Elsewhere than in continuous integration this is a warning.
    [ "${CI:-}" = true ] && exit 1
    exit 0
}
