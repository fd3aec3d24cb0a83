"""Completes the settings of train.py in a shell, also after `python` and `accelerate launch`."""

from argparse import SUPPRESS, Action

# Passes the part of a command line that begins with train.py to the function that shtab writes for such a command.
AFTER_A_LAUNCHER = {
    "bash": """
_launched_train_py() {
  local at last=${COMP_WORDS[COMP_CWORD]} word words=()
  for ((at = COMP_CWORD - 1; at >= 0; at--)); do
    [[ ${COMP_WORDS[at]##*/} == train.py ]] && break
  done
  ((at < 0)) && return # files, by the option -o default
  for word in "${COMP_WORDS[@]:at:COMP_CWORD-at}"; do
    [[ $word == = ]] || words+=("$word") # --name=value is three words to bash
  done
  [[ $last == = ]] && last=
  COMP_WORDS=("${words[@]}" "$last") COMP_CWORD=${#words[@]}
  _shtab_train_py
}
complete -o default -o bashdefault -F _launched_train_py train.py python python3 accelerate
""",
    "zsh": """
_launched_train_py() {
  local at=${words[(I)(*/|)train.py]} word
  ((at == 0 || at >= CURRENT)) && { _default; return }
  local -a before=()
  for word in "${(@)words[at,CURRENT-1]}" ${(M)words[CURRENT]:#--*=*}; do
    [[ $word == --*=* ]] && before+=("${word%%=*}" "${word#*=}") || before+=("$word") # two words for shtab
  done
  compset -P '--*=' && before[-1]=()
  words=("${before[@]}" "$PREFIX") CURRENT=$((${#before} + 1))
  _shtab_train_py
}
compdef _launched_train_py train.py python python3 accelerate
""",
}


class PrintCompletion(Action):
    """A flag that prints the script that a shell has to source, and exits."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, SUPPRESS, default=SUPPRESS, choices=list(AFTER_A_LAUNCHER), **options)

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.get_completion_script(f"shtab-{values}"), AFTER_A_LAUNCHER[values])
        raise SystemExit
