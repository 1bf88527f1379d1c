# An object whose code holds the address of a function of the C library: it needs DT_TEXTREL.
    .text
    .globl call_unlink
    .type call_unlink, @function
call_unlink:
    movabsq $unlink, %rax
    jmp *%rax
    .section .note.GNU-stack, "", @progbits
