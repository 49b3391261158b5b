"""Completion of the command line in four shells.

Each shell gets a few lines that ask the command itself, ``mistral-chat complete WORDS``, for what
may stand in place of the last word.
"""

from __future__ import annotations

SCRIPTS = {
    "bash": """\
_mistral_chat() {
    local IFS=$'\\n'
    COMPREPLY=($(mistral-chat complete -- "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null))
    [ ${#COMPREPLY[@]} -eq 0 ] && compopt -o default
}
complete -F _mistral_chat mistral-chat
""",
    "zsh": """\
#compdef mistral-chat
_mistral_chat() {
    local -a words_found
    words_found=("${(@f)$(mistral-chat complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${words_found[1]}" ]]; then compadd -a words_found; else _files; fi
}
compdef _mistral_chat mistral-chat
""",
    "fish": """\
complete -c mistral-chat -a '(mistral-chat complete -- \
(commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
""",
    "powershell": """\
Register-ArgumentCompleter -Native -CommandName mistral-chat -ScriptBlock {
    param($word, $ast, $cursor)
    $words = @($ast.CommandElements | Select-Object -Skip 1 | ForEach-Object { "$_" })
    if ($word -eq '') { $words += '' }
    mistral-chat complete -- @words 2>$null | ForEach-Object {
        [System.Management.Automation.CompletionResult]::new($_)
    }
}
""",
}
