"""Shells: the completion scripts, as text made of the grammar. Each stands alone: none takes a package of completions to be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from shoal.cli.grammar import Command, Kind, Operand, Option

_LISTED: Final[tuple[Kind, ...]] = ("domains", "known", "signals", "cores", "profiles")


# --- bash ---------------------------------------------------------------------------------------------

_BASH = """\
# Completion of shoal for bash 4.2 and later. Made by: shoal completion bash

_shoal_options() { # the options of a verb
    case $1 in
%(options)s
    *) REPLY= ;;
    esac
}

_shoal_value() { # what the value of a verb's option can be: words, or @ and a kind; nothing where it has none
    case "$1 $2" in
%(values)s
    *) REPLY= ;;
    esac
}

_shoal_operand() { # what a verb's operand of a number can be
    case "$1 $2" in
%(operands)s
    *) REPLY= ;;
    esac
}

_shoal_offer() { # command, kind, what is there of the word
    local IFS=$'\\n'
    case $2 in
    @) ;;
    @file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$3") ;;
    @directory) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$3") ;;
    @*) mapfile -t COMPREPLY < <(compgen -W "$("$1" completion --list "${2#@}" 2>/dev/null | cut -f 1)" -- "$3") ;;
    *) IFS=' '; mapfile -t COMPREPLY < <(compgen -W "$2" -- "$3") ;;
    esac
}

_shoal_program() { # where in the line the program is
    if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$1"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif (( $1 == COMP_CWORD )) && [[ $2 != */* ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$2" | sort -u)
    else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$2")
    fi
}

_shoal() {
    local word verb='' wants='' operand=0 only_operands='' at REPLY cur=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    for (( at = 1; at < COMP_CWORD; at++ )); do
        word=${COMP_WORDS[at]}
        if [[ -z $verb ]]; then
            verb=$word
        elif [[ $word == = && -n $wants ]]; then
            :
        elif [[ -n $wants ]]; then
            wants=
        elif [[ $word == -- ]]; then
            only_operands=yes
        elif [[ $word == -?* && -z $only_operands ]]; then
            _shoal_value "$verb" "$word"
            wants=$REPLY
        else
            _shoal_operand "$verb" "$operand"
            if [[ $REPLY == @command ]]; then
                _shoal_program "$at" "$cur"
                return
            fi
            operand=$(( operand + 1 ))
        fi
    done
    if [[ -z $verb ]]; then
        _shoal_offer "$1" '%(verbs)s' "$cur"
        return
    fi
    if [[ -n $wants ]]; then
        [[ $cur == = ]] && cur=
        _shoal_offer "$1" "$wants" "$cur"
        return
    fi
    _shoal_operand "$verb" "$operand"
    if [[ -z $only_operands ]] && [[ $cur == -* || -z $REPLY ]]; then
        _shoal_options "$verb"
        _shoal_offer "$1" "$REPLY" "$cur"
    elif [[ $REPLY == @command ]]; then
        _shoal_program "$COMP_CWORD" "$cur"
    else
        _shoal_offer "$1" "$REPLY" "$cur"
    fi
}

complete -F _shoal shoal
"""


def bash(found: Sequence[Command]) -> str:
    """The script for bash."""
    options, values, operands = [], [], []
    for command in found:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        options.append(f"    {command.verb}) REPLY='{flags}' ;;")
        for option in command.options:
            if option.takes:
                spelled = " | ".join(f"'{command.verb} {flag}'" for flag in option.flags)
                values.append(f"    {spelled}) REPLY='{_bash_kind(option)}' ;;")
        for index, operand in enumerate(command.operands):
            pattern = f"{command.verb}\\ *" if operand.repeats else f"'{command.verb} {index}'"
            operands.append(f"    {pattern}) REPLY='{_bash_kind(operand)}' ;;")
    verbs = " ".join(command.verb for command in found)
    return _BASH % {"options": "\n".join(options), "values": "\n".join(values), "operands": "\n".join(operands), "verbs": verbs}


def _bash_kind(what: Option | Operand) -> str:
    return " ".join(what.choices) if what.choices else f"@{what.kind}"


# --- zsh ----------------------------------------------------------------------------------------------

_ZSH = """\
#compdef shoal
# Completion of shoal for zsh 5. Made by: shoal completion zsh

_shoal_listed() { # what shoal lists of a kind
  local -a found
  found=(${(f)"$(command $_shoal_command completion --list $1 2>/dev/null)"})
  found=(${found//:/\\\\:})
  found=(${found/$'\\t'/:})
  _describe -V -t $1 $1 found
}

_shoal() {
  local curcontext=$curcontext _shoal_command=${(Q)words[1]} ret=1
  local -a state state_descr line verbs
  local -A opt_args
  _arguments -C \\
    '(- *)'{-h,--help}'[print help and exit]' \\
    '(- *)'{-V,--version}'[print the version and exit]' \\
    '1: :->verb' \\
    '*:: :->rest' && ret=0
  case $state[1] in
  verb)
    verbs=(
%(verbs)s
    )
    _describe -t commands verb verbs && ret=0
    ;;
  rest)
    curcontext="${curcontext%%:*:*}:shoal-$words[1]:"
    case $words[1] in
%(cases)s
    esac
    ;;
  esac
  return ret
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _shoal "$@"
else
  compdef _shoal shoal
fi
"""
_ZSH_ACTIONS: Final[dict[Kind, str]] = {"file": "_files", "directory": "_files -/", "": " "}


def zsh(found: Sequence[Command]) -> str:
    """The script for zsh."""
    cases = []
    for command in found:
        specs = [_zsh_option(option) for option in command.options]
        specs += [_zsh_operand(index, operand) for index, operand in enumerate(command.operands)]
        cases.append(f"    {command.verb})\n      _arguments -s -S : \\\n        " + " \\\n        ".join(specs) + " && ret=0\n      ;;")
    verbs = "\n".join(f"      {_quoted(command.verb + ':' + command.summary)}" for command in found)
    return _ZSH % {"verbs": verbs, "cases": "\n".join(cases)}


def _zsh_option(option: Option) -> str:
    takes = f":{_zsh_text(option.takes)}:{_zsh_action(option)}" if option.takes else ""
    told = _quoted(f"[{_zsh_text(option.help)}]{takes}")
    flags = [flag + ("" if not option.takes else "=" if flag.startswith("--") else "+") for flag in option.flags]
    if len(flags) == 1:
        return ("'*'" if option.repeats else "") + flags[0] + told
    before = "'*'" if option.repeats else f"'({' '.join(option.flags)})'"
    return before + "{" + ",".join(flags) + "}" + told


def _zsh_operand(index: int, operand: Operand) -> str:
    if operand.kind == "command":
        return "'(-)1:program: _command_names -e' '*::arguments: _normal'"
    place = "*" if operand.repeats else str(index + 1)
    return _quoted(f"{place}:{_zsh_text(operand.name)}:{_zsh_action(operand)}")


def _zsh_action(what: Option | Operand) -> str:
    if what.choices:
        return f"({' '.join(what.choices)})"
    # The blank keeps _arguments from putting arguments of its own before ours.
    return f" _shoal_listed {what.kind}" if what.kind in _LISTED else _ZSH_ACTIONS[what.kind]


def _zsh_text(text: str) -> str:
    return "".join("\\" + c if c in "[]:\\" else c for c in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish ---------------------------------------------------------------------------------------------

_FISH = """\
# Completion of shoal for fish 3. Made by: shoal completion fish

function __shoal_verb # true when the verb is this one; without one, when there is none yet
    set -l words (commandline -opc)
    if test (count $argv) -eq 0
        test (count $words) -eq 1
    else
        test (count $words) -ge 2; and test "$words[2]" = "$argv[1]"
    end
end

function __shoal_place # -eq or -ge a number: true when so many operands precede; and the options that take a value
    set -l words (commandline -opc)
    set -l place 0
    set -l at 3
    while test $at -le (count $words)
        set -l word $words[$at]
        set at (math $at + 1)
        if test "$word" = --
            set place (math $place + (count $words) - $at + 1)
            break
        else if contains -- $word $argv[3..-1]
            set at (math $at + 1)
        else if not string match -q -- '-*' $word
            set place (math $place + 1)
        end
    end
    test $place $argv[1] $argv[2]
end

function __shoal_listed # what shoal lists of a kind
    set -l words (commandline -opc)
    command $words[1] completion --list $argv[1] 2>/dev/null
end

function __shoal_program # with how many operands precede it, and the options that take a value: how the program's own line can go on
    set -l words (commandline -opc) (commandline -ct)
    set -l left $argv[1]
    set -l at 3
    while test $at -lt (count $words)
        set -l word $words[$at]
        if not string match -q -- '-*' $word
            test $left -eq 0; and break
            set left (math $left - 1)
        end
        set at (math $at + 1)
        test "$word" = --; and test $left -eq 0; and break
        contains -- $word $argv[2..-1]; and set at (math $at + 1)
    end
    test $left -eq 0; and test $at -le (count $words); or return # something else is being typed
    set -l before
    test $at -lt (count $words); and set before (string escape -- $words[$at..-2])
    test (count $before) -eq 0; and string match -q -- '-*' $words[-1]; and return
    complete -C (string join ' ' -- $before $words[-1])
end

complete -c shoal -f
complete -c shoal -n __shoal_verb -s h -l help -d 'print help and exit'
complete -c shoal -n __shoal_verb -s V -l version -d 'print the version and exit'
%s
"""


def fish(found: Sequence[Command]) -> str:
    """The script for fish."""
    lines = [f"complete -c shoal -n __shoal_verb -a {command.verb} -d {_fish_quoted(command.summary)}" for command in found]
    for command in found:
        here = f"complete -c shoal -n '__shoal_verb {command.verb}'"
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            lines.append(f"{here} {flags} -d {_fish_quoted(option.help)}{_fish_value(option)}")
        for index, operand in enumerate(command.operands):
            lines += _fish_operand(command, index, operand)
    return _FISH % "\n".join(lines)


def _fish_value(option: Option) -> str:
    if not option.takes:
        return ""
    if option.kind == "file":
        return " -r -F"
    return " -x" + (f" -a {_fish_quoted(_fish_words(option))}" if option.choices or option.kind else "")


def _fish_operand(command: Command, index: int, operand: Operand) -> list[str]:
    if not operand.choices and not operand.kind:
        return []
    valued = "".join(f" {flag}" for option in command.options if option.takes for flag in option.flags)
    when = f"__shoal_verb {command.verb}"
    if operand.kind == "command":
        return [f"complete -c shoal -n '{when}' -a {_fish_quoted(f'(__shoal_program {index}{valued})')}"]
    if index or not operand.repeats:
        when += f"; and __shoal_place {'-ge' if operand.repeats else '-eq'} {index}{valued}"
    what = "-F" if operand.kind == "file" else f"-a {_fish_quoted(_fish_words(operand))}"
    return [f"complete -c shoal -n '{when}' {what}"]


def _fish_words(what: Option | Operand) -> str:
    if what.choices:
        return " ".join(what.choices)
    return "(__fish_complete_directories)" if what.kind == "directory" else f"(__shoal_listed {what.kind})"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: Final[dict[str, Callable[[Sequence[Command]], str]]] = {"bash": bash, "zsh": zsh, "fish": fish}
