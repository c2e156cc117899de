# Writes a C file that holds the Lua files FILES (relative to ROOT).
set(text "/* Made by the build from lua/. */\n#include \"bind/bind.h\"\n\n")
set(table "")
set(i 0)
foreach(file IN LISTS FILES)
  file(READ ${ROOT}/${file} hex HEX)
  string(LENGTH "${hex}" length)
  math(EXPR length "${length} / 2")
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
  string(REGEX REPLACE "/init\\.lua$|\\.lua$" "" name "${file}")
  string(REPLACE "/" "." name "${name}")
  if(NOT file MATCHES "^moonstash/") # one prefix, as in moonstash/cache/key.lua
    set(file "moonstash/${file}")
  endif()
  string(APPEND text "static const char file${i}[] = {\n${hex}};\n")
  string(APPEND table "    {\"${name}\", \"@${file}\", file${i}, ${length}},\n")
  math(EXPR i "${i} + 1")
endforeach()
file(WRITE ${OUTPUT} "${text}
const struct bind_embedded bind_embedded[] = {
${table}    {NULL, NULL, NULL, 0},
};
")
