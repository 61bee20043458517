# For scripts that take minutes, to be sourced: `step TEXT` says what comes next, and after how long; and what a script has
# started ends with it, where `kill` reaches the script alone.
step() {
    printf '\n==> [%dm%02ds] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

# end_children PID: TERM to what a process has started, and to what subshells of it have.
end_children() {
    local child
    for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        [[ $(cat "/proc/$child/comm" 2>/dev/null) != bash ]] || end_children "$child"
        kill -TERM "$child" 2>/dev/null || true
    done
}
trap 'end_children $$' EXIT
