# The CPU backend, compiled once for each level of instructions that levels.cpp chooses from.
#
# add_cpu_backend(<library>) adds the levels to the kernels' library: with TRAIN_QAT_NATIVE, and on processors other than
# x86-64, one for this machine. train_qat_cpu_internals: the objects of the lowest level, for tests of what is inside.
#
# Each level becomes one object file, of which only the factory is visible: otherwise the linker would take, say, one
# std::vector function of all levels for all, and with it instructions that a processor may not have.

function(add_cpu_level library level)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cpu/*.cpp ${CMAKE_CURRENT_SOURCE_DIR}/cpu/generation/*.cpp
       ${CMAKE_CURRENT_SOURCE_DIR}/cpu/attention/*.cpp)
  set(factory_source ${CMAKE_CURRENT_SOURCE_DIR}/cpu/backend_factory.cpp)
  list(REMOVE_ITEM sources ${factory_source})
  set(factory train_qat_cpu_backend_${level})
  add_library(train_qat_cpu_${level} OBJECT ${sources})
  add_library(train_qat_cpu_${level}_factory OBJECT ${factory_source})
  foreach(target train_qat_cpu_${level} train_qat_cpu_${level}_factory)
    target_link_libraries(${target} PRIVATE train_qat_options OpenMP::OpenMP_CXX)
    target_compile_options(${target} PRIVATE ${ARGN} $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
  endforeach()
  target_compile_definitions(train_qat_cpu_${level}_factory PRIVATE TRAIN_QAT_CPU_FACTORY=${factory})
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cpu_${level}.o)
  set(objects $<TARGET_OBJECTS:train_qat_cpu_${level}> $<TARGET_OBJECTS:train_qat_cpu_${level}_factory>)
  add_custom_command(OUTPUT ${object}
    COMMAND ${CMAKE_LINKER} -r --force-group-allocation -o ${object} ${objects}
    COMMAND ${CMAKE_OBJCOPY} --keep-global-symbol=${factory} ${object}
    DEPENDS ${objects} COMMAND_EXPAND_LISTS VERBATIM COMMENT "Joining the CPU backend for ${level}")
  target_sources(${library} PRIVATE ${object})
  add_dependencies(${library} train_qat_cpu_${level} train_qat_cpu_${level}_factory)
endfunction()

function(add_cpu_backend library)
  if(TRAIN_QAT_NATIVE OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    add_cpu_level(${library} native)  # -march=native is among the options of all
    set(lowest native)
  else()
    set(wide -mprefer-vector-width=512)
    add_cpu_level(${library} avx2 -march=x86-64-v3)
    add_cpu_level(${library} avx512 -march=x86-64-v4 ${wide})
    add_cpu_level(${library} avx512_bf16 -march=x86-64-v4 -mavx512bf16 -mavx512vnni ${wide})
    target_compile_definitions(${library} PRIVATE TRAIN_QAT_CPU_LEVELS)
    set(lowest avx2)
  endif()
  add_library(train_qat_cpu_internals INTERFACE)
  target_sources(train_qat_cpu_internals INTERFACE $<TARGET_OBJECTS:train_qat_cpu_${lowest}>)
endfunction()
