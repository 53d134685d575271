# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# Completion of kvmsched's command line for bash: the role puts it into /usr/local/share/bash-completion/completions

# bash expands a list of words as it does a command line: such a list holds only what stands in this file.
_kvmsched_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
}

_kvmsched_files() {
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
}

# Who may define a guest chooses its name, and what is offered here lands in an administrator's command line.
_kvmsched_guests() {
    local name quoted
    compopt +o filenames 2>/dev/null
    while IFS= read -r name; do
        printf -v quoted %q "$name"
        [[ -n $name && ($name == "$current"* || $quoted == "$current"*) ]] && COMPREPLY+=("$quoted")
    done < <(virsh --readonly --quiet list --name 2>/dev/null)
}

_kvmsched() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" command="" word options
    local commands="run once release repay room pause resume top explain status snapshot record replay plan check"
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == -* ]] || { command=$word && break; }
    done
    if [[ -z $command ]]; then
        _kvmsched_words "$commands --help --version"
        return
    fi
    case $previous in
        --cells | --for | --step | --pcpus | --memory | --at) return ;;
        --policy | -o | --output | --from | --html | --png | --record) _kvmsched_files && return ;;
        --uri) _kvmsched_words "qemu:///system qemu:///session" && return ;;
        --sort | -s) _kvmsched_words "cpu memory name usable wait" && return ;;
        --delay | --interval | --iterations | -d | -i) return ;;
    esac
    case $command in
        run) options="-h --help --uri --policy" ;;
        once) options="-h --help -n --dry-run --exit-code --diff --json --uri --policy" ;;
        release) options="-h --help --give-only -n --dry-run --diff --json --uri --policy" ;;
        repay) options="-h --help -n --dry-run --diff --json --uri --policy" ;;
        room) options="-h --help --cells --wait --ask-only --json --uri --policy" ;;
        pause) options="-h --help --uri" ;;
        resume) options="-h --help --uri" ;;
        top) options="-h --help -d --delay -n --iterations -b --batch --once -s --sort --uri --policy" ;;
        explain) options="-h --help --at --record --json --uri --policy" ;;
        status) options="-h --help --json --uri" ;;
        snapshot) options="-h --help -a --anonymise -i --interval -o --output --uri --policy" ;;
        record) options="-h --help --for --anonymise --from --uri --policy" ;;
        replay) options="-h --help --policy --untouched --step --html --png --fleet --pcpus --memory --json" ;;
        plan) options="-h --help --diff --json --policy" ;;
        check) options="-h --help --defaults --json --uri" ;;
        *) return ;;
    esac
    if [[ $current == -* ]]; then
        _kvmsched_words "$options"
        return
    fi
    case $command in
        once) _kvmsched_words "memory vcpu both" ;;
        plan) mapfile -t COMPREPLY < <(compgen -f -W "memory vcpu both" -- "$current") ;;
        check | record | replay) _kvmsched_files ;;
        explain | release | repay) _kvmsched_guests ;;
    esac
}
complete -o filenames -F _kvmsched kvmsched
