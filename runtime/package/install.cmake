# cmake --install: the program, both libraries, the header, and what build
# systems look for.
install(TARGETS moonstash RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS libmoonstash_shared libmoonstash_static EXPORT moonstash-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/moonstash.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY lua/meta/ DESTINATION ${CMAKE_INSTALL_DATADIR}/moonstash/meta)

# Relative to the .pc file, so that an installed tree can be moved, and that
# cmake --install --prefix gives a right one.
file(RELATIVE_PATH prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(runtime/package/moonstash.pc.in moonstash.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/moonstash.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

configure_package_config_file(runtime/package/config.cmake.in moonstash-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moonstash)
write_basic_package_version_file(moonstash-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(EXPORT moonstash-targets NAMESPACE moonstash::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moonstash)
install(FILES ${CMAKE_BINARY_DIR}/moonstash-config.cmake
  ${CMAKE_BINARY_DIR}/moonstash-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moonstash)
