# For scripts that take minutes: `step TEXT` says what comes next, and after how long. To be sourced.
step() {
    printf '\n==> [%dm%02ds] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}
