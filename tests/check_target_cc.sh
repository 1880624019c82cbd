#!/usr/bin/env bash
# A C compiler for check_target.sh: arm64, with the options that only Apple's know left out. Assembly for Apple's assembler
# gives an empty object.
set -euo pipefail

arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        -arch | -isysroot) shift ;;
        -mmacosx-version-min=* | --target=* | -gfull) ;;
        *.S) arguments+=(-x c /dev/null) ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
exec aarch64-linux-gnu-gcc "${arguments[@]}"
